r"""Forms of the ODE: each prediction is a velocity in a clock of its own.

Along the probability-flow ODE, for each kind of prediction F,

  d(x / c) / du = F,

| F                       | c                   | u                     |
|-------------------------|---------------------|-----------------------|
| x0                      | sigma               | 1 / rho = e^lambda    |
| eps                     | alpha               | rho = sigma / alpha   |
| v = (alpha eps - sigma x0) / R | R = sqrt(alpha^2 + sigma^2) | arctan(rho) |
| flow = eps - x0         | alpha + sigma       | sigma / (alpha+sigma) |
| velocity = alpha' x0 + sigma' eps | 1         | t                     |

because x / c is a mixture of x0 and eps whose weights are functions of rho
alone. A step therefore is

  x' = (c' / c) x + c' int_u^u' F du,

and a method is the choice of F and of what F is taken for between the calls: a
polynomial in u itself (Adams-Bashforth, LMS, Runge-Kutta), in lambda
(exponential integrators), or in the time of some process (tAB-DEIS).
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike


class Form(NamedTuple):
  """One row of the table above; all in float64 on the host.

  Attributes:
    scale: (process, t) -> c.
    output: (process, t) -> weights of (x0, eps) in F, f64[..., 2].
    clock: (process, t) -> u.
    time: (process, u) -> t.
    rate: lambda -> du / dlambda; None where u is no function of lambda.
  """

  scale: Callable[[GaussianProcess, Array], Array]
  output: Callable[[GaussianProcess, Array], Array]
  clock: Callable[[GaussianProcess, Array], Array]
  time: Callable[[GaussianProcess, Array], Array]
  rate: Callable[[Array], Array] | None


def _constant(x0: float, eps: float):
  return lambda process, t: np.broadcast_to([x0, eps], (*np.shape(t), 2))


def _v_output(process, t):
  alpha, sigma = process.alpha(t), process.sigma(t)
  return np.stack([-sigma, alpha], -1) / np.hypot(alpha, sigma)[..., None]


FORMS = MappingProxyType(
  {
    "x0": Form(
      scale=lambda process, t: process.sigma(t),
      output=_constant(1.0, 0.0),
      clock=lambda process, t: np.exp(process.log_snr(t)),
      time=lambda process, u: process.time_at(1.0 / u),
      rate=np.exp,
    ),
    "eps": Form(
      scale=lambda process, t: process.alpha(t),
      output=_constant(0.0, 1.0),
      clock=lambda process, t: process.noise_level(t),
      time=lambda process, u: process.time_at(u),
      rate=lambda lam: -np.exp(-lam),
    ),
    "v": Form(
      scale=lambda process, t: np.hypot(process.alpha(t), process.sigma(t)),
      output=_v_output,
      clock=lambda process, t: np.arctan2(process.sigma(t), process.alpha(t)),
      time=lambda process, u: process.time_at(np.tan(u)),
      rate=lambda lam: -0.5 / np.cosh(lam),
    ),
    "flow": Form(
      scale=lambda process, t: process.alpha(t) + process.sigma(t),
      output=_constant(-1.0, 1.0),
      clock=lambda process, t: numerics.sigmoid(-process.log_snr(t)),
      time=lambda process, u: process.log_snr_inverse(-numerics.logit(u)),
      rate=lambda lam: -numerics.sigmoid(lam) * numerics.sigmoid(-lam),
    ),
    "velocity": Form(
      scale=lambda process, t: np.ones_like(t),
      output=lambda process, t: np.stack(process.rates(t), axis=-1),
      clock=lambda process, t: t,
      time=lambda process, u: u,
      rate=None,
    ),
  }
)


def carry(
  output: str, process: GaussianProcess, t: ArrayLike, t_next: ArrayLike
) -> Array:
  """Returns c' / c, what a step from t to t_next keeps of x."""
  scale = FORMS[output].scale
  return scale(process, t_next) / scale(process, t)


def weights(
  output: str,
  process: GaussianProcess,
  nodes: np.ndarray,
  step: tuple[float, float],
  variable: str | GaussianProcess,
) -> np.ndarray:
  """Returns the weights of F's values in one step's exact integral, f64[m].

  The polynomial through the values at `nodes` is integrated over the step:
  x' = (c' / c) x + sum_k w_k F_k.

  Args:
    output: the form, one of `FORMS`.
    process: the forward process.
    nodes: f64[m], times of the values.
    step: (t, t_next), the step that is taken.
    variable: what F is a polynomial of: "own" (the form's clock u),
      "log_snr" (lambda), or a process (its time, matched by noise level).

  Raises:
    ValueError: for an unknown variable, or "velocity" in any but its own.
  """
  form = FORMS[output]
  ends = np.asarray(step, np.float64)
  if isinstance(variable, str):
    checks.one_of(variable, ("own", "log_snr"), "variable")
  if variable != "own" and form.rate is None:
    raise ValueError(
      f"output={output!r} is extrapolated in its own time alone; take"
      " variable='own', or another output"
    )
  if variable == "own":
    place, (start, end) = np.asarray, form.clock(process, ends)
    at, rate = form.clock(process, nodes), np.ones_like
  else:
    (start, end), at = process.log_snr(ends), process.log_snr(nodes)
    rate = form.rate
    place = np.asarray if variable == "log_snr" else variable.log_snr_inverse
  integral = numerics.gauss_legendre(
    lambda u: rate(u) * numerics.lagrange(place(at), place(u)), start, end
  )
  return form.scale(process, ends[1]) * integral
