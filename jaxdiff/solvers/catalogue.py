"""The table of cases: every solver under its name, with what it promises.

Tests run each contract over all entries, experiments choose from them by name.
A new solver adds an entry here and has them all at once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

from jaxdiff.solvers.building import inner_steps
from jaxdiff.solvers.building import Solver
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.deis import deis
from jaxdiff.solvers.dpm_solver import dpm_solver
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.solvers.dpmpp_3m import dpmpp_3m
from jaxdiff.solvers.euler import euler
from jaxdiff.solvers.heun import heun
from jaxdiff.solvers.heun import heun_churn
from jaxdiff.solvers.ipndm import ipndm
from jaxdiff.solvers.midpoint import midpoint
from jaxdiff.solvers.rk4 import rk4
from jaxdiff.solvers.unipc import unipc


@dataclasses.dataclass(frozen=True)
class Case:
  """A solver with its options bound, and its declared properties.

  Attributes:
    build: (process, grid) -> Tableau.
    order: order of convergence, from an exact history of past outputs and, for
      UniPC, without its lowered last steps.
    calls_per_step: network calls for each step of the grid.
    grid: the grid that it has this order on: "log_snr", or "uniform" for
      methods whose weights assume equal steps in sigma / alpha.
    weak_order: order of the mean and variance of a stochastic solver; `order`
      is 0 then, there is no path to converge to.
  """

  build: Solver
  order: int
  calls_per_step: int = 1
  grid: str = "log_snr"
  weak_order: int = 0


def _case(build, order, calls_per_step=1, grid="log_snr", weak_order=0, **opts):
  bound = functools.partial(build, **opts) if opts else build
  return Case(bound, order, calls_per_step, grid, weak_order)


def _up_to(build, highest, order, grid="log_snr", **opts):
  """A multistep solver of the highest order <= `highest` that a grid allows."""

  def bound(process, times, **more):
    reached = max(1, min(highest, inner_steps(process, times)))
    return build(process, times, order=reached, **{**opts, **more})

  def backwards(process, times, **more):  # of `encoder`
    reached = min(highest, len(times) - 1)
    return build.build(process, times, order=reached, **{**opts, **more})

  bound.build = backwards
  return Case(bound, order, grid=grid)


CASES: Mapping[str, Case] = MappingProxyType(
  {
    "euler": _case(euler, 1),
    "heun": _case(heun, 2, 2),
    "midpoint": _case(midpoint, 2, 2),
    "rk4": _case(rk4, 4, 4),
    "ddim": _case(ddim, 1),
    "dpm_solver_2": _case(functools.partial(dpm_solver, order=2), 2, 2),
    "dpm_solver_3": _case(functools.partial(dpm_solver, order=3), 3, 3),
    "dpmpp_2m": _case(dpmpp_2m, 2),
    "dpmpp_3m": _case(dpmpp_3m, 3),
    "unip_2": _up_to(unipc, 2, 2, corrector=False),
    "unipc_1": _up_to(unipc, 1, 2),
    "unipc_2": _up_to(unipc, 2, 3),
    "unipc_3": _up_to(unipc, 3, 4),
    "unipc_3_bh1": _up_to(unipc, 3, 4, variant="bh1"),
    "unipc_2_eps": _up_to(unipc, 2, 3, output="eps"),
    "deis_2": _up_to(deis, 2, 2),
    "deis_3": _up_to(deis, 3, 3),
    "deis_4": _up_to(deis, 4, 4),
    "ipndm_2": _up_to(ipndm, 2, 2, grid="uniform"),
    "ipndm_3": _up_to(ipndm, 3, 3, grid="uniform"),
    "ipndm_4": _up_to(ipndm, 4, 4, grid="uniform"),
    "ddim_eta": _case(ddim, 0, weak_order=1, eta=0.5),
    "ddpm": _case(ddpm, 0, weak_order=1),
    "heun_churn": _case(heun_churn, 0, 2, weak_order=2, churn=10.0),
  }
)
