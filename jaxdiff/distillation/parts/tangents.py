r"""Derivatives of a network along the trajectories of an ODE.

Along dx / dt = alpha' x0 + sigma' eps, for a pair (x0, eps) that a teacher
answers (or the data's own, whose mean given x it is), a function f of (x, t)
changes by

  df / dc = D f(x, t) [c' dx / dt, c'],   c' = dt / dc,

per unit of a clock c: one `jax.jvp`. The factor goes into the direction, before
the derivative is taken, so that nothing large is ever multiplied by something
small. Two clocks, with w = alpha sigma' - sigma alpha':

| clock                           | dt / dc               | of                 |
|---------------------------------|-----------------------|--------------------|
| log(sigma / alpha) = log tan a  | alpha sigma / w       | sCM: cos a sin a   |
|                                 |                       | d / da (TrigFlow)  |
| sigma / (alpha + sigma)         | (alpha + sigma)^2 / w | MeanFlow: the time |
|                                 |                       | of rectified flow  |

A derivative is part of a target and is never differentiated itself: what is
closed over is to be stopped, `jax.lax.stop_gradient(model)`, and then reverse
mode does not see it at all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.distillation.parts.trigflow import floating
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model

MODES = ("exact", "finite_difference")
VELOCITIES = ("teacher", "data")


def along_ode(
  f: Callable[[jax.Array, jax.Array], jax.Array],
  process: GaussianProcess,
  x: jax.Array,
  t: jax.Array,
  pair: Prediction,
  rate: jax.Array,
  mode: Any = "exact",
) -> tuple[jax.Array, jax.Array]:
  """Returns (f(x, t), df / dc), both without gradients.

  Args:
    f: function of (x, t), like x.
    process: the forward process.
    x: [batch, ...].
    t: f[batch].
    pair: (x0, eps), the velocity of the ODE at x.
    rate: dt / dc, f[batch].
    mode: "exact"; "finite_difference", for networks without a forward mode; or
      a function that is called as `jax.jvp` is.

  Raises:
    TypeError: for integer times, or a network without a forward mode.
    ValueError: for an unknown mode.
  """
  floating(t, "a time of training")
  alpha_dot, sigma_dot = (tree.expand(v, x) for v in process.rates(t))
  x_dot = (alpha_dot * pair.x0 + sigma_dot * pair.eps).astype(x.dtype)
  if mode == "finite_difference":
    value, slope = _difference(f, process, x, t, x_dot, rate)
  else:
    if not callable(mode):
      checks.one_of(mode, MODES, "jvp")
    push = mode if callable(mode) else jax.jvp
    direction = (tree.expand(rate, x) * x_dot).astype(x.dtype)
    try:
      value, slope = push(f, (x, t), (direction, rate))
    except TypeError as e:
      if "custom_vjp" not in str(e):
        raise
      raise TypeError(
        "this network has no forward mode: part of it is a jax.custom_vjp, a"
        " fused kernel as a rule. Take attention with an exact rule"
        ' ("blocks" or "cudnn_jvp" of networks.attention), give the'
        ' kernel a jax.custom_jvp, or choose jvp="finite_difference"'
      ) from e
  return jax.lax.stop_gradient((value, slope))


def log_noise_rate(process: GaussianProcess, t: jax.Array) -> jax.Array:
  """Returns dt / d log(sigma / alpha), 0 where either vanishes."""
  return process.alpha(t) * process.sigma(t) / _turning(process, t)


def flow_rate(process: GaussianProcess, t: jax.Array) -> jax.Array:
  """Returns dt / d(sigma / (alpha + sigma)); 1 for a rectified flow."""
  return (process.alpha(t) + process.sigma(t)) ** 2 / _turning(process, t)


def flow_time(process: GaussianProcess, t: ArrayLike) -> Any:
  """Returns sigma / (alpha + sigma), the time of rectified flow."""
  sigma = process.sigma(t)
  return sigma / (process.alpha(t) + sigma)


def velocity_of(
  kind: str,
  teacher: Model,
  x: jax.Array,
  t: jax.Array,
  labels: tuple,
  data: Prediction,
) -> Prediction:
  """Returns the pair that stands for the velocity of the ODE at x.

  Args:
    kind: "teacher", or "data", which is unbiased and needs no teacher.
    teacher: model(x, t[, label]) -> Prediction.
    x: noised data.
    t: f[batch].
    labels: labels of the samples, as `generators.label` gives them.
    data: what x was made of.
  """
  pair = data if kind == "data" else ask(teacher, x, t, *labels)
  return jax.lax.stop_gradient(pair)


def frozen_teacher(kind: str, teacher: Model) -> dict[str, Any]:
  """Returns what a method looks at: the teacher, where it is asked.

  Raises:
    ValueError: for an unknown kind, or where a teacher is needed and is not
      there.
  """
  checks.one_of(kind, VELOCITIES, "velocity")
  if kind == "data":
    return {}
  if teacher is None:
    raise ValueError(
      'velocity="teacher" needs a teacher, got None; velocity="data" trains'
      " from data alone"
    )
  return {"teacher": teacher}


def _turning(process, t):
  """Returns alpha sigma' - sigma alpha', which is positive at both ends."""
  alpha_dot, sigma_dot = process.rates(t)
  return process.alpha(t) * sigma_dot - process.sigma(t) * alpha_dot


def _difference(f, process, x, t, x_dot, rate):
  """Returns (f, df / dc) by a central difference, one-sided at the ends.

  The step is the cube root of the rounding unit in log(sigma / alpha), where
  rounding and curvature weigh about the same.
  """
  width = process.t_max - process.t_min
  unit = jnp.maximum(log_noise_rate(process, t), 1e-3 * width)
  h = jnp.finfo(t.dtype).eps ** (1 / 3) * unit
  later = jnp.minimum(t + h, process.t_max)
  earlier = jnp.maximum(t - h, process.t_min)
  at = lambda s: f(x + (tree.expand(s - t, x) * x_dot).astype(x.dtype), s)
  slope = (at(later) - at(earlier)) / tree.expand(later - earlier, x)
  return f(x, t), tree.expand(rate, x) * slope
