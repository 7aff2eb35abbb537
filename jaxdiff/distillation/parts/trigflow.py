r"""TrigFlow: every Gaussian process as a rotation by an angle.

With d = sigma_data and S = sqrt(alpha^2 d^2 + sigma^2) any process is

  tan a = sigma / (alpha d),   cos a = alpha d / S,   sin a = sigma / S,
  y = (d / S) x = cos a x0 + sin a d eps,

the process alpha = cos a, sigma = d sin a of `process`. What a network is asked
for is the velocity along the probability-flow ODE,

  V = dy / da = cos a d eps - sin a x0,   x0 = cos a y - sin a V,

which the pair (x0, eps) gives at both ends without a division. It is -d times
the F of EDM (`predictions`, "edm"), whose input x / S is y / d: a Denoiser that
predicts "edm" is a TrigFlow network already, under any process, and every other
kind is one up to a factor. So nothing is wrapped in order to be trained: `scm`
reads V off the pair, in the student's own coordinates.

`under` carries a model from its own process to another of the same x0 and eps;
between TrigFlow, EDM and rectified flow these are the changes of variables of
the papers. Reference: Lu and Song (2024), https://arxiv.org/abs/2410.11081,
section 3 and appendix B.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import predictions
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import describe
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True)
class Schedule:
  """alpha = cos t, sigma = sigma_data sin t."""

  sigma_data: float = 1.0
  t_zero: float = 0.0

  def alpha(self, t: ArrayLike) -> Any:
    # as a sine, so that it is exactly zero (and never negative) at pi / 2
    return numerics.namespace(t).sin(0.5 * math.pi - t)

  def sigma(self, t: ArrayLike) -> Any:
    return self.sigma_data * numerics.namespace(t).sin(t)

  def log_snr(self, t: ArrayLike) -> Any:
    return numerics.log(self.alpha(t)) - numerics.log(self.sigma(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Any:
    xp = numerics.namespace(lam)
    return xp.arctan(xp.exp(-lam) / self.sigma_data)

  def rates(self, t: ArrayLike) -> tuple[Any, Any]:
    return -self.sigma(t) / self.sigma_data, self.sigma_data * self.alpha(t)


def process(
  sigma_data: float = 1.0, sigma_min: float = 0.002
) -> GaussianProcess:
  """Returns the process whose time is the angle, from near 0 to pi / 2.

  Args:
    sigma_data: standard deviation of the data.
    sigma_min: sigma / alpha at its smallest time.
  """
  low = math.atan(sigma_min / sigma_data)
  return GaussianProcess(Schedule(sigma_data), low, 0.5 * math.pi)


def turn(
  process: GaussianProcess, t: ArrayLike, sigma_data: float
) -> tuple[Any, Any]:
  """Returns (cos a, sin a) of the angle at t, of any process."""
  alpha, sigma = process.alpha(t), process.sigma(t)
  scale = predictions.input_scale(alpha, sigma, sigma_data)
  return alpha * sigma_data * scale, sigma * scale


def angle(process: GaussianProcess, t: ArrayLike, sigma_data: float) -> Any:
  """Returns the angle a of the time t of any process, in [0, pi / 2]."""
  t = numerics.as_float(t)
  xp = numerics.namespace(t)
  return xp.arctan2(process.sigma(t), sigma_data * process.alpha(t))


def velocity(
  process: GaussianProcess,
  predicted: Prediction,
  t: ArrayLike,
  sigma_data: float,
) -> jax.Array:
  """Returns V = cos a d eps - sin a x0 of a prediction at t, like x0."""
  cos, sin = (
    tree.expand(v, predicted.x0) for v in turn(process, t, sigma_data)
  )
  return cos * sigma_data * predicted.eps - sin * predicted.x0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Under:
  """A model that was made for one process, under another one; a model.

  Attributes:
    model: called as model(x, t, label) in its own coordinates.
    own: its own process.
    process: the one that it is asked under.
  """

  model: Model
  own: GaussianProcess = dataclasses.field(metadata={"static": True})
  process: GaussianProcess = dataclasses.field(metadata={"static": True})

  def __call__(
    self, x: jax.Array, t: ArrayLike, label: ArrayLike | None = None
  ) -> Prediction:
    """Returns (x0, eps) at x [batch, ...], at t of `process`.

    The model is asked at the same sigma / alpha, or at the end of its own times
    that is nearest to it.
    """
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    time = self.own.time_at(self.process.noise_level(t))
    time = jnp.clip(time, self.own.t_min, self.own.t_max)
    length = lambda p, t: jnp.hypot(p.alpha(t), p.sigma(t))
    scale = length(self.own, time) / length(self.process, t)
    label = () if label is None else (label,)
    return ask(self.model, tree.expand(scale, x) * x, time, *label)


def under(
  model: Model, process: GaussianProcess, own: GaussianProcess | None = None
) -> Under:
  """Returns the model under another process.

  Args:
    model: model(x, t[, label]) -> Prediction.
    process: the one that it is to be asked under.
    own: the one that it was made for; by default model.process.

  Raises:
    ValueError: for processes of different noise.
  """
  own = getattr(model, "process", None) if own is None else own
  checks.process(own, "under(model, process, own)")
  checks.process(process, "under(model, process)")
  if own.noise != process.noise:
    raise ValueError(
      f"a model of {describe(own)}, whose noise is {own.noise}, knows nothing"
      f" of {describe(process)}, whose noise is {process.noise}; give it"
      " dataclasses.replace(process, noise=own.noise)"
    )
  return Under(model, own, process)


def field(
  model: Model, sigma_data: float, own: GaussianProcess | None = None
) -> Callable[..., jax.Array]:
  """Returns V(y, a[, label]), the velocity of any model in TrigFlow.

  Args:
    model: model(x, t[, label]) -> Prediction under any process.
    sigma_data: standard deviation of the data.
    own: the process of the model; by default model.process.

  The result raises TypeError for integer angles, which it cannot be
  differentiated in, and ValueError for angles outside of (0, pi / 2].
  """
  own = getattr(model, "process", None) if own is None else own
  checks.process(own, "field(model, sigma_data, own)")
  to = dataclasses.replace(process(sigma_data), noise=own.noise)
  there = under(model, to, own)

  def velocity_at(y: jax.Array, a: PyTree, *label: Any) -> jax.Array:
    floating(a, "an angle of TrigFlow")
    if checks.concrete(a):
      # float32 rounds pi / 2 up
      bad = ~((np.asarray(a) > 0) & (np.asarray(a) < 0.5 * math.pi + 1e-6))
      if bad.any():
        raise ValueError(
          f"an angle of TrigFlow is inside (0, pi / 2], got {np.asarray(a)};"
          " trigflow.angle(process, t, sigma_data) makes one of the time of"
          " another process"
        )
    return velocity(
      there.process, there(y, a, *label), jnp.asarray(a), sigma_data
    )

  return velocity_at


def floating(t: ArrayLike, what: str) -> None:
  """Raises a TypeError for integer times: nothing is differentiated in them."""
  dtype = jnp.result_type(t)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"{what} must be floating point, got {dtype}: the derivative in it is"
      " part of the loss; convert it, t.astype(jnp.float32), and give a network"
      " that counts steps a function of t, Denoiser(time=lambda t: ...)"
    )


def check_sigma_data(x: PyTree, sigma_data: float) -> None:
  """Raises a ValueError if sigma_data is more than 20 % off the data's spread.

  Args:
    x: f[n, ...], a sample of the data, a few hundred values at least.
    sigma_data: what the methods are to take for its standard deviation.
  """
  measured = float(np.std(np.asarray(x, np.float64)))
  if not 0.8 * measured <= sigma_data <= 1.2 * measured:
    raise ValueError(
      f"sigma_data={sigma_data:.4g}, but the standard deviation of the data is"
      f" {measured:.4g}; TrigFlow turns data and noise of one size into one"
      f" another: give sigma_data={measured:.2g}, or scale the data by"
      f" {sigma_data / measured:.3g}"
    )
