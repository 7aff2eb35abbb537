"""Agreement of table, model and process: comparison by noise levels.

Times mean nothing by themselves: t = 0.5 is one noise level of one process and
another of another. Two processes agree if they have the same alpha and sigma at
the same times; their ranges of times may differ. A table carries the process
that it was built for (`tableau.under`), a model has its own, and every door
that takes both compares them, where they are known.
"""

import dataclasses
import math
import warnings
from typing import Any

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff.processes.noise import describe
from jaxdiff.processes.noise import is_normal
from jaxdiff.processes.noise import Normal
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

_RTOL = 1e-3  # far below what a sample shows, far above rounding
_ATOL = 1e-6
_NOISE_ALONE = 0.1  # alpha / sigma: data of unit scale are lost in noise there
_SAMPLES, _OF_EACH = 64, 1024  # no more is looked at
_VALUES = 64  # of which a scale is told within a factor of two


@dataclasses.dataclass(frozen=True)
class Recorded:
  """What a table's file tells of its process: its noise levels, and its name.

  Attributes:
    name: name of the process, for messages.
    t: the times of the table's calls.
    levels: (alpha, sigma) at each.
  """

  name: str
  t: tuple[float, ...]
  levels: tuple[tuple[float, float], ...]

  noise = Normal()

  def agrees(self, process: Any) -> bool:
    """Returns whether a process has these noise levels at these times."""
    if isinstance(process, Recorded):  # nothing is known between the times
      return self.t != process.t or np.allclose(self.levels, process.levels)
    t, (alpha, sigma) = np.asarray(self.t), np.asarray(self.levels).T
    return _close(process.alpha(t), alpha) and _close(process.sigma(t), sigma)


def record(table: Any) -> Recorded | None:
  """Returns the record of a table's process, or None if there is none to keep.

  Noise that is not normal is not recorded of a table that draws it.
  """
  process = table.process
  if isinstance(process, Recorded):  # of these calls, or of others
    return process if process.t == tuple(np.asarray(table.t)) else None
  if process is None or not (is_normal(process) or not table.stochastic):
    return None
  t = np.asarray(table.t, np.float64)
  levels = np.stack([process.alpha(t), process.sigma(t)], axis=-1)
  return Recorded(describe(process), tuple(t), tuple(map(tuple, levels)))


def process_of(model: Model) -> Any:
  """Returns the process that a model was made for, or None if it says none.

  A wrapped model (guidance, quantization, a mixture of experts) is its inner
  model's, unless it has a process of its own.
  """
  for _ in range(16):  # wrappers of wrappers
    found = getattr(model, "process", None)
    if _is_process(found):
      return found
    inner = getattr(model, "model", None)
    if inner is None:
      return None
    model = inner
  return None


def width_of(model: Model) -> float | None:
  """Returns the width of the data that a model was trained on, if it says so.

  A wrapped model's is its inner model's, as of `process_of`.
  """
  for _ in range(16):
    found = getattr(model, "data_width", None)
    if found:
      return float(found)
    model = getattr(model, "model", None)
    if model is None:
      return None
  return None


def same(one: PyTree, other: PyTree) -> bool:
  """Returns whether two processes have one noise level at one time.

  Ranges of times and laws of noise may differ. Where a value cannot be read,
  inside a transformation, they are taken to agree.
  """
  if one is other:
    return True
  if getattr(one, "schedule", one) == getattr(other, "schedule", other):
    return True
  for a, b in ((one, other), (other, one)):
    if isinstance(a, Recorded):
      return a.agrees(b)
  low, high = max(one.t_min, other.t_min), min(one.t_max, other.t_max)
  if not all(map(checks.concrete, (low, high))):
    return True
  if not low < high:
    return False
  t = np.linspace(low, high, 9)
  if low > 0:  # both scales: EDM's times span five orders of magnitude
    t = np.concatenate([t, np.geomspace(low, high, 9)])
  return _close(one.alpha(t), other.alpha(t)) and _close(
    one.sigma(t), other.sigma(t)
  )


def _close(a, b):
  if not (checks.concrete(a) and checks.concrete(b)):
    return True
  return np.allclose(a, b, rtol=_RTOL, atol=_ATOL)


def check(
  model: Model, table: Any = None, process: Any = None, call: str = "sample"
) -> Any:
  """Checks what a sampler is given, and returns the process it is under.

  Args:
    model: the model.
    table: a Tableau, or None.
    process: the process that the caller named, or None.
    call: name of the function, for the message.

  Returns:
    The process named, the model's or the table's; None if none is known.

  Raises:
    ValueError: if two of them disagree, if the table calls at times that the
      model's process does not have, or draws noise of another law than its.
  """
  built = getattr(table, "process", None)
  known = {
    "process=": process,
    "the model": process_of(model),
    "the table": built,
  }
  known = {
    k: v for k, v in known.items() if _is_process(v) or isinstance(v, Recorded)
  }
  if not known:
    return None
  (first, one), *others = known.items()
  for second, other in others:
    _check_same(first, one, second, other, call)
  if isinstance(one, Recorded):
    return None
  if table is not None and built is None:
    _check_times(table, first, one, call)
  if built is None or is_normal(one) or not checks.concrete(table.noise):
    return one
  if np.any(jax.device_get(table.noise)) and built.noise != one.noise:
    raise ValueError(
      f"{call}: the table was built for {describe(built)} and draws its noise,"
      f" {built.noise}, but {first} is of {describe(one)}, whose noise is"
      f" {one.noise}; take a deterministic solver (eta=0, churn=0)"
    )
  return one


def check_models(call: str, **models: Any) -> None:
  """Raises a ValueError if two models are asked at one x_t, but of two laws.

  Args:
    call: name of what asks them, for the message.
    **models: models or processes, by their names in the message; what has no
      process is passed over.
  """
  known = {
    f"the {k}": v if _is_process(v) else process_of(v)
    for k, v in models.items()
  }
  known = {k: v for k, v in known.items() if v is not None}
  if not known:
    return
  (first, one), *others = known.items()
  for second, other in others:
    mend = (
      f"make {second} with the process of {first}, or bring a model to another"
      " process with distillation.trigflow.under(model, process)"
    )
    _check_same(first, one, second, other, call, mend)
    laws = [getattr(p, "noise", None) for p in (one, other)]
    if laws[0] != laws[1]:
      raise ValueError(
        f"{call}: {first} is of {describe(one)}, whose noise is {laws[0]}, but"
        f" {second} of {describe(other)}, whose noise is {laws[1]}; {mend}"
      )


def check_start(x: PyTree, process: Any, t: ArrayLike) -> None:
  """Warns if x cannot be noise of the process at time t, by its scale.

  Looked at only where the process leaves no data to be seen (alpha / sigma
  below 0.1), where x is one concrete array of many values, and off by more
  than a factor: an image to begin from, data in large units or noise that was
  scaled a little are not meant.

  Args:
    x: [batch, ...], where sampling starts.
    process: the process, or None if it is not known.
    t: the time of the first call.
  """
  if process is None or not isinstance(x, (np.ndarray, jax.Array)):
    return
  if not all(map(checks.concrete, (x, t))) or np.ndim(t):
    return
  if not getattr(x, "is_fully_addressable", True):
    return
  alpha, sigma = process.alpha(float(t)), process.sigma(float(t))
  if not all(map(checks.concrete, (alpha, sigma))):
    return
  if x.size < _VALUES or not alpha < _NOISE_ALONE * sigma:
    return
  if not is_normal(process) and len(x) < 16:  # single samples may be anything
    return
  each = _some(x)
  # the median: tails are heavy under other laws than the normal
  scale = float(np.median(np.sqrt(np.mean(each**2, axis=1))))
  if scale < 0.5 * sigma or scale > 4.0 * sigma:
    warnings.warn(
      f"sampling starts at t = {float(t):.6g} of {describe(process)}, where x"
      f" is noise of scale sigma = {float(sigma):.4g}, but x has the scale"
      f" {scale:.4g}; pass x = process.prior(key, shape), or a shape with"
      " process=..., or multiply your noise by process.sigma(t)",
      stacklevel=3,
    )


def _some(x):
  """Returns f64[n <= 64, d], some values of an array, 2**16 at the most.

  They are cut out where they lie: no more than these travel to the host, and
  of a split array none from one device to another.
  """
  parts = [x]
  if isinstance(x, jax.Array):
    parts = [shard.data for shard in x.addressable_shards[:_SAMPLES]]
  rows = _SAMPLES // len(parts)
  found = []
  for part in parts:
    limits, left = [], _SAMPLES * _OF_EACH // len(parts)
    for i, size in enumerate(part.shape):
      most = left // math.prod(part.shape[i + 1 :]) if i else rows
      limits.append(min(size, max(1, most)))
      left //= limits[-1]
    if any(a != b for a, b in zip(limits, part.shape, strict=True)):
      on_host = not isinstance(part, jax.Array)
      on_host = on_host or part.device.platform == "cpu"  # a view costs nothing
      if on_host:
        part = jax.device_get(part)[tuple(map(slice, limits))]
      else:
        part = jax.lax.slice(part, [0] * part.ndim, limits)
    part = jax.device_get(part)  # said aloud, for who guards transfers
    found.append(part.astype(np.float64).reshape(len(part), -1))
  width = min(part.shape[1] for part in found)
  return np.concatenate([part[:, :width] for part in found])


def _check_same(first, one, second, other, call, mend=None):
  if same(one, other):
    return
  at = ""
  if any(isinstance(p, Recorded) for p in (one, other)):
    low, high = 0.0, 0.0
  else:
    low, high = max(one.t_min, other.t_min), min(one.t_max, other.t_max)
  if low < high:
    t = np.linspace(low, high, 9)
    apart = lambda f: abs(getattr(one, f)(t) - getattr(other, f)(t))
    i = int(np.argmax(apart("alpha") + apart("sigma")))
    at = (
      f" At t = {t[i]:.4g} the one has (alpha, sigma) ="
      f" ({one.alpha(t)[i]:.4g}, {one.sigma(t)[i]:.4g}), the other"
      f" ({other.alpha(t)[i]:.4g}, {other.sigma(t)[i]:.4g})."
    )
  raise ValueError(
    f"{call}: {first} is of {describe(one)}, but {second} of"
    f" {describe(other)}: the same times mean other noise levels, and the"
    f" samples would be nonsense.{at} Mend: {mend or _REBUILD}"
  )


_REBUILD = (
  "build the table with the model's process, as in solver(model.process,"
  " grids.karras(model.process, n)), or move it there with"
  " solvers.transfer(table, source, model.process)"
)


def _check_times(table, first, process, call):
  """Refuses a table without a process that leaves the times of a known one."""
  t = table.t
  if not all(map(checks.concrete, (t, table.noise))) or np.size(t) == 0:
    return
  t, noise = jax.device_get((t, table.noise))
  t = np.asarray(t, np.float64)
  low, high = process.t_min, process.t_max
  slack = 1e-5  # the times may be float32
  outside = (t < low - slack * abs(low)) & (t != process.t_zero)
  if not np.any(noise):  # churn asks above the grid's first time
    outside |= t > high + slack * abs(high)
  if outside.any():
    raise ValueError(
      f"{call}: the table calls the model at t = {t[outside][0]:.6g}, but"
      f" {first} is of {describe(process)}; build the table with that process"
    )


def _is_process(value):
  return hasattr(value, "log_snr") and hasattr(value, "t_max")
