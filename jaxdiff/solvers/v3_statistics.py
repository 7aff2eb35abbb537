r"""Empirical model statistics: the curves l, s, b of DPM-Solver-v3.

With u = x / alpha, lambda = log(alpha / sigma), all products by coordinate,

  f = e^{-lambda} eps - l u,
  du/dlambda = -l u - f,    df/dlambda = s f + b + rest.

l is what is linear in x of the model, E[diag(sigma d eps / dx)]; s and b are
the linear regression of f's change along the flow on f. What is left varies
least, and only that is extrapolated. `learning.v3_statistics` estimates
them from a model and data; here they are held, written, read, and known in
closed form:

  Gaussian data N(mu, diag v):  l = sigma^2 / (alpha^2 v + sigma^2), s = 0,
                                b = -l' mu  (then nothing is left)
  "data":   l = 1, s = 0, b = 0:   x0 is extrapolated, DPM-Solver++
  "noise":  l = 0, s = -1, b = 0:  eps is, DPM-Solver

Any curves give a convergent solver; between their nodes they are splines.
"""

import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff.processes import GaussianProcess


class ModelStatistics(NamedTuple):
  """Curves over the log-SNR, for one model.

  Attributes:
    lam: f64[m], rising, lambda at the nodes.
    l: f64[m, ...], of a sample's shape, or one that broadcasts to it.
    s: f64[m, ...].
    b: f64[m, ...].
    schedule: schedule of the process, as text, that the model runs under.
    note: text on model, guidance scale, data; compared when loaded.
  """

  lam: np.ndarray
  l: np.ndarray
  s: np.ndarray
  b: np.ndarray
  schedule: str = ""
  note: str = ""


def save(path: str | os.PathLike, statistics: ModelStatistics) -> None:
  """Writes the statistics as an npz file, whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + ".partial")
  with open(partial, "wb") as file:
    np.savez(file, **statistics._asdict())
  partial.replace(path)


def load(
  path: str | os.PathLike,
  process: GaussianProcess | None = None,
  note: str | None = None,
) -> ModelStatistics:
  """Reads what `save` wrote.

  Args:
    path: the file.
    process: refuse statistics of another schedule.
    note: refuse statistics of another note.

  Raises:
    ValueError: if something is missing or does not belong.
  """
  mend = "Statistics are written by v3_statistics.save(path, statistics)."
  file = archives.read(path, mend)
  missing = set(ModelStatistics._fields) - set(file)
  if missing:
    raise ValueError(
      f"{path} holds no model statistics, it lacks {sorted(missing)}; write"
      " them with v3_statistics.save(path, statistics)"
    )
  values = {name: file[name] for name in ModelStatistics._fields}
  statistics = ModelStatistics(
    **values | dict(schedule=str(values["schedule"]), note=str(values["note"]))
  )
  if note is not None and statistics.note != note:
    raise ValueError(
      f"{path} holds the statistics of {statistics.note!r}, asked was {note!r};"
      " they depend on the model, its guidance and its data: estimate them anew"
    )
  check(statistics)
  if process is not None:
    check_schedule(statistics, process)
  return statistics


def check(statistics: ModelStatistics) -> ModelStatistics:
  """Returns the statistics after checking shapes and values.

  Raises:
    TypeError: for anything else than statistics.
    ValueError: for mismatched shapes, nodes that do not rise, values that are
      not finite, or an s that explodes.
  """
  if not isinstance(statistics, ModelStatistics):
    raise TypeError(
      "dpm_solver_v3 takes a model's statistics, got"
      f" {type(statistics).__name__}; estimate them with"
      " learning.v3_statistics.estimate(key, model, process, data), or"
      " take v3_statistics.of_gaussian(process, variance=...)"
    )
  lam = np.asarray(statistics.lam)
  if lam.ndim != 1 or len(lam) < 4 or not (np.diff(lam) > 0).all():
    raise ValueError(
      "statistics.lam must be at least 4 rising log-SNRs, got shape"
      f" {lam.shape}"
    )
  for name in ("l", "s", "b"):
    curve = np.asarray(getattr(statistics, name))
    if curve.shape != (len(lam), *np.shape(statistics.l)[1:]):
      raise ValueError(
        f"statistics.{name} must have shape {np.shape(statistics.l)}, a value"
        f" at every node as l has, got {curve.shape}"
      )
    if not np.isfinite(curve).all() or abs(curve).max() > _LARGEST:
      raise ValueError(
        f"statistics.{name} is not finite or exceeds {_LARGEST:g} (largest:"
        f" {abs(curve).max():.3g}); estimate it from more samples"
      )
  return statistics


def check_schedule(
  statistics: ModelStatistics, process: GaussianProcess
) -> None:
  """Raises a ValueError if the statistics are of another schedule."""
  given = schedule_name(process)
  if statistics.schedule and statistics.schedule != given:
    raise ValueError(
      f"these statistics were estimated under {statistics.schedule}, but the"
      f" process is {given}; a model has its statistics under its own process"
    )


def schedule_name(process: GaussianProcess) -> str:
  """Returns the schedule as text, the same in every run."""
  return re.sub(r" at 0x[0-9a-f]+", "", repr(process.schedule))


def nodes(
  process: GaussianProcess,
  m: int,
  span: tuple[float, float] | None = None,
) -> np.ndarray:
  """Returns m log-SNRs over the process's range, or over `span`, rising."""
  checks.process(process, "model statistics of (process)")
  if span is None:
    span = tuple(process.log_snr(np.asarray([process.t_max, process.t_min])))
    if not np.isfinite(span[0]):
      span = (_LEAST_LOG_SNR, span[1])
  return np.linspace(*span, m)


def of_gaussian(
  process: GaussianProcess,
  mean: np.ndarray | float = 0.0,
  variance: np.ndarray | float = 1.0,
  *,
  m: int = 601,
  span: tuple[float, float] | None = None,
) -> ModelStatistics:
  """Returns the statistics of the exact model of N(mean, diag variance).

  Needs no model: with the mean and variance of real data it is a cheap guess.

  Args:
    process: the forward process.
    mean: mean of the data, of a sample's shape or a scalar.
    variance: the same.
    m: number of nodes.
    span: log-SNRs from and to; the process's by default, from -7 where
      alpha(t_max) = 0.
  """
  lam = nodes(process, m, span)
  mean, variance = np.broadcast_arrays(
    np.asarray(mean, np.float64), np.asarray(variance, np.float64)
  )
  if not (variance > 0).all():
    raise ValueError(f"the variance of data is positive, got {variance.min()}")
  at = lam.reshape((-1,) + (1,) * variance.ndim)
  l = 1.0 / (np.exp(2.0 * at) * variance + 1.0)
  slope = -2.0 * l * (1.0 - l)
  return ModelStatistics(
    lam, l, np.zeros_like(l), -slope * mean, schedule_name(process), "gaussian"
  )


def degenerate(
  process: GaussianProcess,
  kind: str,
  *,
  m: int = 601,
  span: tuple[float, float] | None = None,
) -> ModelStatistics:
  """Returns the statistics that make DPM-Solver++ or DPM-Solver of v3.

  Args:
    process: the forward process.
    kind: "data" or "noise", what is extrapolated.
    m: number of nodes.
    span: log-SNRs from and to; the process's by default.
  """
  checks.one_of(kind, ("data", "noise"), "kind")
  lam = nodes(process, m, span)
  one, zero = np.ones(m), np.zeros(m)
  curves = (one, zero, zero) if kind == "data" else (zero, -one, zero)
  return ModelStatistics(lam, *curves, schedule_name(process), kind)


_LARGEST = 1e3
_LEAST_LOG_SNR = -7.0
