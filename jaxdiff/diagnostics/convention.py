r"""Conventions: measures on data which one a network follows.

The sign of an output and the direction of time are silent mistakes: every
answer has the right shape, and samples are noise. On data the mistake is loud.
For x = alpha x0 + sigma eps the network is asked once for each way of telling
it the time and of scaling its input, its answer is decoded in every way that
`predictions` knows, and each reading is judged by

  error = E (|x0_hat - x0|^2 + |eps_hat - eps|^2) / E (|x0|^2 + |eps|^2),

over noise levels from sigma / alpha = 0.2 to 5. To answer x0 = 0 or eps = 0 is
worth about 1, the reading that a network was trained under less, and a wrong
one usually much more.

The posterior means have the least error that there is, so no reading beats the
right one but by chance. How much that is, the images tell: readings are
compared image by image under the same noise, and the mean of the differences
has a standard error. `check` believes another reading that is better by more
than four of them and by a tenth. Readings that answer the same cannot be told
apart: of normal data with unit variance v is 0 at all times under a
variance-preserving process, and a score that is symmetric in time is the same
when time is turned around.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import predictions
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike

_LEVELS = np.geomspace(0.2, 5.0, 8)
_MARGIN = 1.1  # by how much another reading is better before it is believed
_ERRORS = 4.0  # and by how many standard errors
_FEW = 8  # images, of which no standard error is told: half as much again
_MARGIN_OF_FEW = 1.5


class Reading(NamedTuple):
  """One way of reading a network.

  Attributes:
    prediction: what its output is taken for, as in `Denoiser.prediction`.
    time: what it is told, as in `Denoiser.time`; "turned" is the denoiser's own
      clock backwards.
    scale_input: whether its input is scaled.
    error: error of the pair decoded so, as in the module's docstring.
  """

  prediction: str
  time: Array
  scale_input: bool
  error: float


def readings(
  key: jax.Array,
  denoiser: Denoiser,
  x0: ArrayLike,
  label: ArrayLike | None = None,
) -> list[Reading]:
  """Returns every reading of the denoiser's network, the best one first.

  Args:
    key: PRNG key of the noise.
    denoiser: as it was declared; its process, parameters and clock are kept.
    x0: data, f[batch, ...]; 64 samples will do.
    label: label of the data; by default the label that the denoiser holds.

  Raises:
    TypeError: for a model that is no Denoiser.
  """
  return [one for one, _ in _measured(key, denoiser, x0, label)]


def _measured(key, denoiser, x0, label):
  """Returns (reading, f[batch], its error of every image), the best first."""
  if not isinstance(denoiser, Denoiser):
    raise TypeError(
      "readings(key, denoiser, x0) looks into a Denoiser, got"
      f" {type(denoiser).__name__}; make one with denoisers.from_function"
    )
  x0 = jnp.asarray(x0)
  if not jnp.issubdtype(x0.dtype, jnp.floating):
    raise TypeError(
      f"x0 are data as the network knows them, floating point; got {x0.dtype}:"
      " scale integer pixels with x / 127.5 - 1"
    )
  process = denoiser.process
  low, high = process.noise_level(np.asarray([process.t_min, process.t_max]))
  inside = _LEVELS[(low <= _LEVELS) & (high >= _LEVELS)]
  times = process.time_at(inside if len(inside) else np.sqrt([low * high]))
  found = []
  for time, turned in _clocks(denoiser):
    for scaled in (False, True):
      own = dataclasses.replace(
        denoiser, prediction="x0", time=turned, scale_input=scaled
      )
      errors = _errors(own, key, x0, jnp.asarray(times, jnp.float32), label)
      for kind, each in errors.items():
        each = np.asarray(each, np.float64)
        found.append((Reading(kind, time, scaled, float(each.mean())), each))
  worst = lambda one: np.inf if np.isnan(one[0].error) else one[0].error
  return sorted(found, key=worst)


def check(
  key: jax.Array,
  denoiser: Denoiser,
  x0: ArrayLike,
  label: ArrayLike | None = None,
) -> Reading:
  """Returns the declared reading, once no other one fits the data better.

  Args are those of `readings`.

  Raises:
    ValueError: if another reading is better by a tenth and by more than the
      images leave to chance (by half, of less than 8), with what to declare; or
      if none is better than to answer nothing.
    TypeError: for a model that is no Denoiser.
  """
  ranked = _measured(key, denoiser, x0, label)
  scaled = denoiser.scale_input
  if scaled is None:
    scaled = denoiser.prediction.removeprefix("-") == "edm"
  said = (denoiser.prediction, denoiser.time, scaled)
  ((declared, own),) = [one for one in ranked if one[0][:3] == said]
  best, least = ranked[0]
  if not best.error < 1.0:
    raise ValueError(
      f"no reading of this network denoises these data: the best one,"
      f" {_words(best)}, has the error {best.error:.3g}, that of an answer of"
      " zeros being 1; look at its parameters, at the process (its times and"
      " its noise levels), and at the scale of the data"
    )
  if _better(own, least):
    raise ValueError(
      f"the network is declared with {_words(declared)}, whose error on these"
      f" data is {declared.error:.3g} (1 is that of an answer of zeros), but"
      f" {_words(best)} has {best.error:.3g}: declare that, or look at the"
      " process and at the scale of the data"
    )
  return declared


def _better(own, other):
  """Returns whether other errors of the images are less, beyond chance."""
  n = len(own)
  margin = _MARGIN if n >= _FEW else _MARGIN_OF_FEW
  if own.mean() <= margin * other.mean():
    return False
  apart = own - other
  if n < _FEW or not np.isfinite(apart).all():  # a NaN is no fit either
    return True
  return apart.mean() > _ERRORS * apart.std(ddof=1) / np.sqrt(n)


def _words(one):
  time = repr(one.time) if isinstance(one.time, str) else "your function"
  if one.time == "turned":
    time = "its clock turned around, lambda t: told(1 - t)"
  return (
    f"prediction={one.prediction!r}, time={time}, scale_input={one.scale_input}"
  )


def _clocks(denoiser):
  """Returns (name, time) of the denoiser's clock and, if it has one, back."""
  own, process = denoiser.time, denoiser.process
  yield own, own
  if own in ("t", "1 - t"):
    if process.t_max <= 1:
      yield (("1 - t",) * 2 if own == "t" else ("t",) * 2)
  elif own == "steps" or (callable(own) and process.t_max <= 1):
    yield "turned", _Turned(own, process.t_min)


@dataclasses.dataclass(frozen=True)
class _Turned:
  """A clock backwards; equal ones share their compiled programs."""

  time: Array
  t_min: float

  def __call__(self, t):
    if self.time == "steps":  # N t - 1 becomes N - 1 - (N t - 1)
      return (1.0 - t) / self.t_min
    return self.time(1.0 - t)


@jax.jit
def _errors(raw, key, x0, times, label):
  """Returns every kind's errors of the images, from one call at each time."""
  process = raw.process
  kinds = [sign + kind for kind in predictions.KINDS for sign in ("", "-")]

  def at(t):
    x, eps = process.perturb(key, x0, t)
    output = predictions.ask(raw, x, t, label).x0  # what the network returned
    wide = x.astype(output.dtype)
    ends = (process.alpha(t), process.sigma(t), raw.sigma_data)
    off = []
    for kind in kinds:
      rates = process.rates(t)
      pair = predictions.decode(kind, output, wide, *ends, rates)
      error = (pair.x0 - x0) ** 2 + (pair.eps - eps) ** 2
      off.append(jnp.mean(error.reshape(len(x0), -1), axis=1))
    return jnp.stack(off), jnp.mean(x0**2 + eps**2)

  off, size = jax.lax.map(at, times.astype(tree.compute_dtype(x0.dtype)))
  return dict(zip(kinds, jnp.mean(off, 0) / jnp.mean(size), strict=True))
