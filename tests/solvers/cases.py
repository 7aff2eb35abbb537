"""The table of cases: every solver under its name, with what it promises.

Tests run each contract over all entries. A new solver adds an entry here and
has them all at once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from jaxdiff.solvers import v3_statistics
from jaxdiff.solvers.adams_bashforth import adams_bashforth
from jaxdiff.solvers.adasde import adasde
from jaxdiff.solvers.angular_adams import angular_adams
from jaxdiff.solvers.balanced_adams import balanced_adams
from jaxdiff.solvers.bdia import bdia
from jaxdiff.solvers.belm import belm
from jaxdiff.solvers.building import inner_steps
from jaxdiff.solvers.building import Solver
from jaxdiff.solvers.cab import cab
from jaxdiff.solvers.dc_solver import dc_solver
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.deis import deis
from jaxdiff.solvers.deis import deis_rk
from jaxdiff.solvers.dpm_solver import dpm_solver
from jaxdiff.solvers.dpm_solver_v3 import dpm_solver_v3
from jaxdiff.solvers.dpmpp_2m import dpm_solver_2m
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.solvers.dpmpp_2m import res_multistep
from jaxdiff.solvers.dpmpp_2m_sde import dpmpp_2m_sde
from jaxdiff.solvers.dpmpp_2s_ancestral import dpmpp_2s_ancestral
from jaxdiff.solvers.dpmpp_3m import dpm_solver_3m
from jaxdiff.solvers.dpmpp_3m import dpmpp_3m
from jaxdiff.solvers.dpmpp_3m_sde import dpmpp_3m_sde
from jaxdiff.solvers.dpmpp_sde import dpmpp_sde
from jaxdiff.solvers.dyweight import dyweight
from jaxdiff.solvers.edict import edict
from jaxdiff.solvers.epd import epd
from jaxdiff.solvers.er_sde import er_sde
from jaxdiff.solvers.euler import euler
from jaxdiff.solvers.euler_ancestral_rf import euler_ancestral_rf
from jaxdiff.solvers.euler_maruyama import euler_maruyama
from jaxdiff.solvers.exponential_ab import exponential_ab
from jaxdiff.solvers.exponential_rk import exp_heun_2_x0
from jaxdiff.solvers.exponential_rk import exponential_rk
from jaxdiff.solvers.gradient_estimation import gradient_estimation
from jaxdiff.solvers.heun import heun
from jaxdiff.solvers.heun import heun_churn
from jaxdiff.solvers.heunpp2 import heunpp2
from jaxdiff.solvers.ipndm import ipndm
from jaxdiff.solvers.ipndm_v import ipndm_v
from jaxdiff.solvers.lms import lms
from jaxdiff.solvers.midpoint import midpoint
from jaxdiff.solvers.neural_solver import neural_solver
from jaxdiff.solvers.pfdiff import pfdiff
from jaxdiff.solvers.pndm import plms
from jaxdiff.solvers.pndm import pndm
from jaxdiff.solvers.pndm import s_pndm
from jaxdiff.solvers.reverse_diffusion import reverse_diffusion
from jaxdiff.solvers.rex import rex
from jaxdiff.solvers.rk4 import rk4
from jaxdiff.solvers.runge_kutta import runge_kutta
from jaxdiff.solvers.rx_dpm import rx_dpm
from jaxdiff.solvers.sa_solver import sa_solver
from jaxdiff.solvers.seeds import seeds
from jaxdiff.solvers.stork import stork
from jaxdiff.solvers.unic import unic
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
    warm_up: (m, c), the first m steps take c calls each, not calls_per_step.
    two_states: whether it walks two samples, so that before the last call the
      anchor may be the one before, or the other one.
  """

  build: Solver
  order: int
  calls_per_step: int = 1
  grid: str = "log_snr"
  weak_order: int = 0
  warm_up: tuple[int, int] = (0, 1)
  two_states: bool = False

  def calls(self, steps: int) -> int:
    """Returns the network calls of so many steps, the ends not counted."""
    first, each = self.warm_up
    first = min(first, steps)
    return first * each + (steps - first) * self.calls_per_step


def _case(
  build,
  order,
  calls_per_step=1,
  grid="log_snr",
  weak_order=0,
  warm_up=(0, 1),
  two_states=False,
  **opts,
):
  bound = functools.partial(build, **opts) if opts else build
  return Case(
    bound, order, calls_per_step, grid, weak_order, warm_up, two_states
  )


def _up_to(build, highest, order, grid="log_snr", weak_order=0, **opts):
  """A multistep solver of the highest order <= `highest` that a grid allows."""

  def bound(process, times, **more):
    reached = max(1, min(highest, inner_steps(process, times)))
    return build(process, times, order=reached, **{**opts, **more})

  def backwards(process, times, **more):  # of `encoder`
    reached = min(highest, len(times) - 1)
    return build.build(process, times, order=reached, **{**opts, **more})

  bound.build = backwards
  return Case(bound, order, grid=grid, weak_order=weak_order)


def _adasde(process, times):
  """AdaSDE whose noise is a given amount over the whole run, as churn is."""
  n = max(1, inner_steps(process, np.asarray(times)))
  return adasde(process, times, gammas=np.full(n, 2.0 / n))


def _v3(highest):
  """DPM-Solver-v3 with the statistics of a standard Gaussian."""

  def arguments(process, times, steps):
    lam = process.log_snr(np.asarray(times, np.float64))
    lam = lam[np.isfinite(lam)] if np.isfinite(lam).any() else np.zeros(1)
    span = (lam.min(), max(lam.max(), lam.min() + 1e-3))
    statistics = v3_statistics.of_gaussian(process, span=span)
    options = dict(corrector=False, lower_order_final=False)
    return statistics, options | dict(order=max(1, min(highest, steps)))

  def bound(process, times):
    statistics, options = arguments(
      process, times, inner_steps(process, np.asarray(times))
    )
    return dpm_solver_v3(process, times, statistics, **options)

  def backwards(process, times):  # of `encoder`
    statistics, options = arguments(process, times, len(times) - 1)
    return dpm_solver_v3.build(process, times, statistics, **options)

  bound.build = backwards
  return Case(bound, highest)


# New cases come last: which steps a test tries depends on the place here.
CASES: Mapping[str, Case] = MappingProxyType(
  {
    "euler": _case(euler, 1),
    "heun": _case(heun, 2, 2),
    "midpoint": _case(midpoint, 2, 2),
    "rk4": _case(rk4, 4, 4),
    "ddim": _case(ddim, 1),
    "adams_bashforth_2": _up_to(adams_bashforth, 2, 2),
    "adams_bashforth_3": _up_to(adams_bashforth, 3, 3),
    "kutta3": _case(runge_kutta, 3, 3, method="kutta3"),
    "midpoint_v": _case(runge_kutta, 2, 2, method="midpoint", output="v"),
    "dpm_solver_2": _case(functools.partial(dpm_solver, order=2), 2, 2),
    "dpm_solver_3": _case(functools.partial(dpm_solver, order=3), 3, 3),
    "dpmpp_2s": _case(
      functools.partial(dpm_solver, order=2), 2, 2, output="x0"
    ),
    "dpmpp_3s": _case(
      functools.partial(dpm_solver, order=3), 3, 3, output="x0"
    ),
    "res_2s": _case(exponential_rk, 2, 2, method="res_2s"),
    "krogstad_4": _case(exponential_rk, 4, 4, method="krogstad_4"),
    "hochbruck_4": _case(exponential_rk, 4, 5, method="hochbruck_4"),
    "dpm_solver_2m": _case(dpm_solver_2m, 2),
    "dpm_solver_3m": _case(dpm_solver_3m, 3),
    "dpm_solver_v3_2": _v3(2),
    "dpm_solver_v3_3": _v3(3),
    "dpmpp_2m": _case(dpmpp_2m, 2),
    "dpmpp_3m": _case(dpmpp_3m, 3),
    "exponential_ab_v": _up_to(exponential_ab, 3, 3, output="v"),
    "exponential_ab_4": _up_to(exponential_ab, 4, 4),
    "unic_dpmpp_2m": _case(unic, 3),
    "unic_deis_3": _up_to(unic, 3, 4, predictor=deis),
    "angular_adams_2": _up_to(angular_adams, 2, 3),
    "angular_adams_4": _up_to(angular_adams, 4, 5),
    "balanced_adams_2": _up_to(balanced_adams, 2, 3),
    "balanced_ab_2": _up_to(balanced_adams, 2, 2, corrector=False),
    "balanced_ab_3": _up_to(balanced_adams, 3, 3, corrector=False, slope=0.15),
    "angular_ab_3": _up_to(angular_adams, 3, 3, corrector=False),
    "unip_2": _up_to(unipc, 2, 2, corrector=False),
    "unipc_1": _up_to(unipc, 1, 2),
    "unipc_2": _up_to(unipc, 2, 3),
    "unipc_3": _up_to(unipc, 3, 4),
    "unipc_3_bh1": _up_to(unipc, 3, 4, variant="bh1"),
    "unipc_2_eps": _up_to(unipc, 2, 3, output="eps"),
    "deis_2": _up_to(deis, 2, 2),
    "deis_3": _up_to(deis, 3, 3),
    "deis_4": _up_to(deis, 4, 4),
    "deis_rho_3": _up_to(deis, 3, 3, variant="rho_ab"),
    "deis_rho_rk3": _case(deis_rk, 3, 3),
    "lms": _up_to(lms, 4, 4),
    "ipndm_v": _up_to(ipndm_v, 4, 4),
    "ipndm_v_published": _up_to(ipndm_v, 4, 3, published=True),
    "ipndm_2": _up_to(ipndm, 2, 2, grid="uniform"),
    "ipndm_3": _up_to(ipndm, 3, 3, grid="uniform"),
    "ipndm_4": _up_to(ipndm, 4, 4, grid="uniform"),
    "s_pndm": _case(s_pndm, 2, grid="uniform", warm_up=(1, 2)),
    "plms": _case(plms, 4, grid="uniform", warm_up=(1, 2)),
    "pndm": _case(pndm, 4, grid="uniform", warm_up=(3, 4)),
    "ddim_eta": _case(ddim, 0, weak_order=1, eta=0.5),
    "euler_maruyama": _case(euler_maruyama, 0, weak_order=1),
    "ddpm": _case(ddpm, 0, weak_order=1),
    "reverse_diffusion": _case(reverse_diffusion, 0, weak_order=1),
    "heun_churn": _case(heun_churn, 0, 2, weak_order=2, churn=10.0),
    "dpmpp_2m_sde": _case(dpmpp_2m_sde, 0, weak_order=2),
    "dpmpp_2m_sde_heun": _case(
      dpmpp_2m_sde, 0, weak_order=2, solver_type="heun"
    ),
    "dpmpp_3m_sde": _case(dpmpp_3m_sde, 0, weak_order=2),
    "dpmpp_sde": _case(dpmpp_sde, 0, 2, weak_order=2),
    "dpmpp_2s_ancestral": _case(dpmpp_2s_ancestral, 0, 2, weak_order=2),
    "dpm_2_ancestral": _case(
      dpmpp_2s_ancestral, 0, 2, weak_order=2, output="eps"
    ),
    "sa_solver": _case(sa_solver, 0, weak_order=2),
    "seeds_1": _case(functools.partial(seeds, order=1), 0, weak_order=1),
    "seeds_2": _case(functools.partial(seeds, order=2), 0, 2, weak_order=2),
    "seeds_3": _case(functools.partial(seeds, order=3), 0, 3, weak_order=2),
    "er_sde_1": _up_to(er_sde, 1, 0, weak_order=1),
    "er_sde_2": _up_to(er_sde, 2, 0, weak_order=2),
    "er_sde_3": _up_to(er_sde, 3, 0, weak_order=2, phi="sde"),
    "res_multistep": _case(res_multistep, 2),
    "res_multistep_flow": _case(res_multistep, 2, clock="flow"),
    "exp_heun_2_x0": _case(exp_heun_2_x0, 2, 2),
    "gradient_estimation": _case(gradient_estimation, 1),
    "gradient_estimation_flow": _case(gradient_estimation, 1, output="flow"),
    # the step of two calls is the last one; their sum is the same
    "heunpp2": _case(heunpp2, 1, 3, warm_up=(1, 2)),
    "heunpp2_flow": _case(heunpp2, 1, 3, warm_up=(1, 2), output="flow"),
    "sa_solver_pece": _case(
      sa_solver, 0, 2, weak_order=2, warm_up=(1, 1), pece=True
    ),
    "euler_ancestral_rf": _case(euler_ancestral_rf, 0, weak_order=1),
    "dpmpp_2s_ancestral_flow": _case(
      dpmpp_2s_ancestral, 0, 2, weak_order=2, down="flow"
    ),
    "belm": _case(belm, 2, two_states=True),
    "bdia": _case(bdia, 1, two_states=True),
    "edict": _case(edict, 1, 2, two_states=True),
    # the step of half the calls is the last one; their sum is the same
    "rex_heun": _case(
      rex, 2, 4, warm_up=(1, 2), two_states=True, method="heun"
    ),
    "rex_rk4": _case(rex, 4, 8, warm_up=(1, 4), two_states=True, method="rk4"),
    "pfdiff": _case(pfdiff, 2),
    "pfdiff_3_2": _case(pfdiff, 2, skip=3, ahead=2),
    "pfdiff_2_1": _case(pfdiff, 1, skip=2),
    "rx_dpm": _case(rx_dpm, 2),
    "cab": _case(cab, 2),
    "cab_3": _case(functools.partial(cab, order=3), 2),
    "stork": _case(stork, 2),
    "stork_eps": _case(stork, 2, output="eps", derivatives=1),
    "dc_solver": _up_to(dc_solver, 3, 4, lower_order_final=False),
    "dyweight": _case(dyweight, 1),
    "epd": _case(epd, 2, 3),
    "neural_solver": _case(neural_solver, 1),
    "adasde": _case(_adasde, 0, 2, weak_order=2),
  }
)
