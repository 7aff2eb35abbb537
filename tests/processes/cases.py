"""Every process, and its alpha and sigma once more in mpmath."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxdiff import processes


class Case(NamedTuple):
  process: processes.GaussianProcess
  alpha: Callable[[Any], Any]
  sigma: Callable[[Any], Any]


def _vp(beta_min, beta_max):
  """Returns alpha(t) and 1 - alpha(t)^2 of VP-linear."""

  def integral(t):
    slope = mpmath.mpf(beta_max) - mpmath.mpf(beta_min)
    return t * (mpmath.mpf(beta_min) + slope * t / 2)

  return (
    lambda t: mpmath.exp(-integral(t) / 2),
    lambda t: -mpmath.expm1(-integral(t)),
  )


def _discrete(betas):
  """Returns lambda(t) of the discrete process, linear between its steps."""
  square, nodes = mpmath.mpf(1), []
  for beta in betas:
    square *= 1 - mpmath.mpf(float(beta))
    nodes.append(mpmath.log(square / (1 - square)) / 2)
  n = len(nodes)

  def lam(t):
    t = mpmath.mpf(t)
    if t * n < 1:
      return nodes[0] - mpmath.log(t * n)
    k = min(int(mpmath.floor(t * n)), n - 1)
    return nodes[k - 1] + (t * n - k) * (nodes[k] - nodes[k - 1])

  return lam


def _cases():
  alpha, square = _vp(0.1, 20.0)
  root = lambda f: lambda t: mpmath.sqrt(f(t))
  one = lambda t: mpmath.mpf(1)
  cosine = lambda t: mpmath.sinpi((1 - t) / 2)
  sine = lambda t: mpmath.sinpi(t / 2)
  ratio = mpmath.mpf(50.0) / mpmath.mpf(0.01)
  betas = np.linspace(0.01, 0.6, 12)
  lam = _discrete(betas)
  covering = processes.vp_linear_covering(0.002, 80.0)
  wide, wide_square = _vp(
    covering.schedule.beta_min, covering.schedule.beta_max
  )
  return {
    "vp_linear": Case(processes.vp_linear(), alpha, root(square)),
    "vp_covering": Case(covering, wide, root(wide_square)),
    "vp_cosine": Case(processes.vp_cosine(), cosine, sine),
    "sub_vp": Case(processes.sub_vp(), alpha, square),
    "ve": Case(
      processes.ve(), one, lambda t: mpmath.mpf(0.01) * mpmath.power(ratio, t)
    ),
    "vp_discrete": Case(
      # from inside a step on: at the steps themselves lambda has a kink
      dataclasses.replace(processes.vp_discrete(betas), t_min=0.09),
      lambda t: mpmath.sqrt(1 / (1 + mpmath.exp(-2 * lam(t)))),
      lambda t: mpmath.sqrt(1 / (1 + mpmath.exp(2 * lam(t)))),
    ),
    "edm": Case(processes.edm(), one, lambda t: t),
    "flow": Case(processes.rectified_flow(), lambda t: 1 - t, lambda t: t),
    "resshift": Case(
      processes.resshift(), lambda t: 1 - t * t, lambda t: 2 * t
    ),
    "pair": Case(
      processes.from_alpha_sigma(
        lambda t: jnp.cos(jnp.pi / 2 * t),
        lambda t: jnp.sin(jnp.pi / 2 * t),
        1e-3,
        1.0,
        0.0,
      ),
      cosine,
      sine,
    ),
  }


CASES = _cases()
PROCESSES = {name: case.process for name, case in CASES.items()}
every_process = pytest.mark.parametrize("name", list(CASES))
