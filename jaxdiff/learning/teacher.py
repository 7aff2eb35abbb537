r"""Lessons of learned solvers: noises, and the ends of their ODE paths.

The teacher is the same model, walked along the same ODE in many small steps. A
lesson is a noise and its end; the solver that learns may make few calls, and
shall end where the teacher ended.

Noises are split honestly: `split` derives three keys, for the noises that
gradients see (train), those that choose among iterates (validation) and those
that the result is reported on (report). Nothing is ever chosen by the last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

Model = sampling.Model


class Split(NamedTuple):
  """Keys of the noises to learn on, to choose by, and to report."""

  train: jax.Array
  validation: jax.Array
  report: jax.Array


class Lessons(NamedTuple):
  """Noises and their ends.

  Attributes:
    start: f[N, ...], the noise at the teacher's first call.
    end: f[N, ...], where the converged ODE takes it.
    label: i32[N], the classes of a conditional model, or None.
  """

  start: jax.Array
  end: jax.Array
  label: Array | None = None


@checks.door
def split(key: jax.Array) -> Split:
  """Returns three keys that share no noise."""
  return Split(*(jax.random.fold_in(key, tag) for tag in range(3)))


@checks.door(least=dict(calls=1))
def teacher(
  process: GaussianProcess, calls: int = 128, t_end: float | None = None
) -> Tableau:
  """Returns the table that is taken for the converged ODE.

  UniPC of order 4 with steps uniform in log(alpha / sigma). On the digits
  mixture and on grid25 even 100 calls end within 2.5e-4 of the ODE (rmse per
  coordinate, for EDM, VP and flows).

  Args:
    process: the forward process.
    calls: number of network calls.
    t_end: where to end; `process.t_zero` ends without noise, by default t_min.

  Raises:
    ValueError: for an end that is neither t_min nor t_zero.
  """
  ends = {process.t_min: False, process.t_zero: True}
  t_end = process.t_min if t_end is None else t_end
  if t_end not in ends:
    raise ValueError(
      f"the teacher ends at t_min={process.t_min:.6g} or, without noise, at"
      f" t_zero={process.t_zero:.6g}, got t_end={t_end:.6g}; narrow the"
      " process with dataclasses.replace(process, t_min=...)"
    )
  grid = grids.log_snr(process, calls, to_zero=ends[t_end])
  return solvers.unipc(process, grid, order=3)


@checks.door
def teach(
  key: jax.Array,
  model: Model,
  process: GaussianProcess,
  shape: tuple[int, ...],
  table: Tableau,
  *,
  label: ArrayLike | None = None,
  dtype: DTypeLike | None = None,
  batch: int = 1024,
) -> Lessons:
  """Returns lessons: noises of the prior and where `table` takes them.

  Args:
    key: one of `split`'s.
    model: the model.
    process: its process.
    shape: (N, ...), number of lessons and shape of a sample.
    table: the teacher, deterministic.
    label: i32[N], classes of the samples, given to the model by
      `denoisers.with_label`.
    dtype: dtype of the noises; the widest that JAX may use by default.
    batch: samples at a time.

  Raises:
    ValueError: if the table draws noise, or table, model and process are not of
      one process.
  """
  checks.process(process, "teach(key, model, process, shape, table)")
  if table.stochastic:
    raise ValueError(
      "the teacher draws noise, so a noise has no one end to be learned; give"
      " a deterministic table, such as teacher(process)"
    )
  agreement.check(model, table, process, "teach")
  dtype = jnp.result_type(float) if dtype is None else dtype
  start = process.prior(key, shape, float(table.t[0]), dtype=dtype)
  lessons = Lessons(start, start, None if label is None else jnp.asarray(label))
  return lessons._replace(end=walk(model, table, lessons, batch=batch))


def walk(
  model: Model,
  table: Tableau,
  lessons: Lessons,
  *,
  batch: int = 1024,
  length: int | None = None,
) -> jax.Array:
  """Returns where a table takes the lessons' noises, in pieces of `batch`.

  A padded table is given its `length`, as in `sampling.sample`.
  """
  size = tree.batch_size(lessons.start)
  batch = min(batch, size)
  ends = []
  for first in range(0, size, batch):
    # the last piece overlaps the one before: one shape, one program
    first = min(first, size - batch)
    part = take(lessons, slice(first, first + batch))
    ends.append(
      sampling.sample(
        jax.random.key(0),
        labelled(model, part),
        table,
        part.start,
        length=length,
      )
    )
  last = size - batch * (len(ends) - 1)
  return jnp.concatenate([*ends[:-1], ends[-1][batch - last :]])


def take(lessons: Lessons, index: ArrayLike) -> Lessons:
  """Returns the lessons at `index`, a slice or an array of indices."""
  return jax.tree.map(lambda leaf: leaf[index], lessons)


def labelled(model: Model, lessons: Lessons) -> Model:
  """Returns the model conditioned on the lessons' classes, if they have any."""
  if lessons.label is None:
    return model
  return denoisers.with_label(model, lessons.label)


def square_errors(x: jax.Array, lessons: Lessons) -> jax.Array:
  """Returns every sample's mean square error per coordinate, f[N]."""
  axes = tuple(range(1, x.ndim))
  return jnp.mean((x - lessons.end) ** 2, axis=axes)


@checks.door
def errors(
  model: Model,
  table: Tableau,
  lessons: Lessons,
  *,
  batch: int = 1024,
  length: int | None = None,
) -> dict[str, float]:
  """Returns a table's rmse per coordinate, and the median over samples.

  Samples near a ridge between modes switch from one to the other and dominate
  the rmse; the median is what most samples see.
  """
  square = square_errors(
    walk(model, table, lessons, batch=batch, length=length), lessons
  )
  return dict(
    rmse=float(jnp.sqrt(square.mean())),
    median=float(jnp.sqrt(jnp.median(square))),
  )
