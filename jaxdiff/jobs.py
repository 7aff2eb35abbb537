"""Sampling jobs: many samples over all devices, kept in shards, resumable.

Sample i depends on the seed and on i alone; batches, devices and hosts only
say who draws it. So a job needs no state but its finished shards: a process
looks which of its own are missing, and draws those.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import auto as tqdm

from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import guidance
from jaxdiff import parallel
from jaxdiff import sampling
from jaxdiff import tableau as tables
from jaxdiff.data import arrays
from jaxdiff.data import shards
from jaxdiff.types import ArrayLike

PARAMS = ("replicated", "sharded")
FORMATS = ("uint8", "float32")


@dataclasses.dataclass(frozen=True)
class Job:
  """What all samples of a job share.

  Attributes:
    model: the denoiser, its parameters where they are to be used (`place`).
    table: the solver.
    shape: shape of one sample.
    seed: seed of their noise.
    classes: number of classes, 0 for an unconditional model.
    label: class of all; None takes every class in turn.
    guidance_scale: scale of classifier-free guidance.
    mesh: the devices a batch is split over; None for the default device.

  Raises:
    ValueError: for a label or a guidance_scale of an unconditional model, and
      for a label that the model lacks.
  """

  model: denoisers.Denoiser
  table: tables.Tableau
  shape: tuple[int, ...]
  seed: int = 0
  classes: int = 0
  label: int | None = None
  guidance_scale: float = 1.0
  mesh: jax.sharding.Mesh | None = None

  def __post_init__(self) -> None:
    label, scale = self.label, self.guidance_scale
    if not self.classes and (label is not None or scale != 1.0):
      given = [f"label={label}"] if label is not None else []
      given += [f"guidance_scale={scale}"] if scale != 1.0 else []
      raise ValueError(
        f"{' and '.join(given)} needs a model with classes, but this one was"
        " trained without (num_classes = 0); leave it out, or train with"
        " config.num_classes"
      )
    if label is not None and not 0 <= label < self.classes:
      raise ValueError(
        f"label={label}, but the model has {self.classes} classes,"
        f" 0..{self.classes - 1}"
      )

  def labels(self, index: np.ndarray) -> np.ndarray:
    """Returns the samples' classes, i32 like index; zeros without classes."""
    if self.label is not None:
      return np.full(len(index), self.label, np.int32)
    return (index % max(self.classes, 1)).astype(np.int32)


class Span(NamedTuple):
  """Samples first..stop, a batch of the shard `number`."""

  number: int
  first: int
  stop: int


@checks.door
def mesh_of(devices: int | None) -> jax.sharding.Mesh | None:
  """Returns a mesh of this process's devices, None for a single one.

  Args:
    devices: number of devices; all by default.

  Raises:
    ValueError: for a number below 1, or if there are fewer.
  """
  local = jax.local_devices()
  if devices is not None and not 1 <= devices <= len(local):
    raise ValueError(
      f"devices={devices}, but this process has 1 to {len(local)}; on a CPU set"
      " XLA_FLAGS=--xla_force_host_platform_device_count=N to pretend more"
    )
  local = local[:devices]
  return parallel.data_mesh(local) if len(local) > 1 else None


def place(
  model: denoisers.Denoiser, mesh: jax.sharding.Mesh | None, params: str
) -> denoisers.Denoiser:
  """Returns a model with its parameters on the devices of a mesh.

  Args:
    model: the denoiser.
    mesh: the devices; None is the default device.
    params: "replicated", a copy on every device, or "sharded", split over them
      and gathered where they are used.

  Raises:
    ValueError: for another word.
  """
  checks.one_of(params, PARAMS, "params")
  if mesh is None:
    return jax.device_put(model)
  if params == "sharded":
    apply = parallel.Gathered(model.apply, mesh)
    model = dataclasses.replace(model, apply=apply)
    return jax.device_put(model, parallel.fully_sharded(model, mesh))
  return jax.device_put(model, parallel.replicated(mesh))


@checks.door
def draw(
  job: Job, spans: Iterable[Span], batch: int
) -> Iterator[tuple[Span, np.ndarray]]:
  """Yields (span, samples f32[stop - first, ...]) for every span.

  While one is fetched and used the devices work on the next. All are drawn in
  batches of one size, so that one program draws them.

  Args:
    job: what to draw.
    spans: spans of at most `batch` samples each.
    batch: samples drawn at a time, at least; a multiple of the devices.

  Raises:
    FloatingPointError: naming the sample, and the step where it broke.
  """
  devices = job.mesh.size if job.mesh else 1
  size = -(-batch // devices) * devices

  def started(span):
    index = np.arange(span.first, span.first + size)
    return span, index, *launch(job, index)

  for span, index, x, since in _one_ahead(map(started, spans)):
    used = span.stop - span.first
    sampling.raise_nonfinite(np.asarray(since)[:used], job.table, index)
    yield span, np.asarray(x)[:used]


@checks.door
def launch(
  job: Job,
  index: np.ndarray,
  collect: sampling.Collector = sampling.nonfinite_since,
) -> tuple[jax.Array, Any]:
  """Starts drawing a batch; returns (samples, what was collected).

  Args:
    job: what to draw.
    index: i[batch], the samples, a multiple of the devices.
    collect: what to keep of the steps; by default when each sample broke.
  """
  sharding = parallel.batch_sharding(job.mesh) if job.mesh else None
  label = job.labels(index)
  if sharding is not None:
    label, index = jax.device_put((label, index.astype(np.int32)), sharding)
  model = conditional(
    job.model, label, classes=job.classes, scale=job.guidance_scale
  )
  return sampling.sample(
    jax.random.key(job.seed),
    model,
    job.table,
    (len(index), *job.shape),
    process=job.model.process,
    index=index,
    collect=collect,
    sharding=sharding,
  )


def conditional(
  model: denoisers.Denoiser, label: ArrayLike, *, classes: int, scale: float
) -> Any:
  """Returns the model of these labels, or the model itself without classes.

  Args:
    model: the denoiser.
    label: i32[batch].
    classes: number of classes, 0 for an unconditional model.
    scale: scale of classifier-free guidance.
  """
  if not classes:
    return model
  if scale == 1.0:
    return denoisers.with_label(model, label)
  return guidance.cfg(model, label=label, null=classes, scale=scale)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
  """Yields items, each when the one after it has been made, too."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item


@checks.door
def write(
  job: Job,
  folder: pathlib.Path,
  *,
  num: int,
  shard_size: int,
  batch: int,
  dtype: str = "float32",
  process: tuple[int, int] = (0, 1),
  on_shard: Callable[[], None] = lambda: None,
) -> int:
  """Draws what is missing of a job's shards; returns how many were drawn.

  Args:
    job: what to draw.
    folder: folder of the shards.
    num: number of samples.
    shard_size: samples in a shard.
    batch: samples drawn at a time.
    dtype: what they are stored as, one of `FORMATS`.
    process: (index, count): of several processes every one draws each count-th
      shard, and needs nothing of the others.
    on_shard: called after each shard.

  Raises:
    FloatingPointError: naming the sample, and the step where it broke.
    OSError: if a shard cannot be written; those before it are kept.
  """
  checks.one_of(dtype, FORMATS, "dtype")
  size = lambda k: min(num - k * shard_size, shard_size)
  stop = lambda k: k * shard_size + size(k)
  mine = list(range(process[0], -(-num // shard_size), process[1]))
  shards.clean(folder, mine)
  held = lambda k: shards.holds(folder, k, k * shard_size, stop(k))
  missing = [k for k in mine if not held(k)]
  batch = min(batch, shard_size, num)
  spans = (
    Span(k, first, min(first + batch, stop(k)))
    for k in missing
    for first in range(k * shard_size, stop(k), batch)
  )
  total, left = sum(map(size, mine)), sum(map(size, missing))
  parts = []
  with tqdm.tqdm(
    total=total, initial=total - left, desc="sampling", unit=" samples"
  ) as bar:
    for span, x in draw(job, spans, batch):
      if dtype == "uint8" and not bar.n > total - left:
        warn_of_cut(x)
      parts.append(encode(x, dtype))
      if span.stop == stop(span.number):
        first = span.number * shard_size
        shards.write(
          folder,
          span.number,
          image=np.concatenate(parts),
          label=job.labels(np.arange(first, span.stop)),
          first=first,
        )
        parts = []
        on_shard()
      bar.update(len(x))
  return left


@checks.door
def encode(x: np.ndarray, dtype: str) -> np.ndarray:
  """Returns samples as they are stored: [-1, 1] becomes u8, by rounding."""
  if dtype == "float32":
    return np.asarray(x, np.float32)
  pixels = np.rint((np.asarray(x, np.float32) + 1.0) * 127.5)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def warn_of_cut(x: np.ndarray) -> None:
  """Says so if samples do not lie in [-1, 1], where pixels are."""
  share = np.mean(np.abs(x) > 1.1)
  if share > 0.1:
    tqdm.tqdm.write(
      f"Warning: {100 * share:.0f} % of the values lie outside of [-1, 1] and"
      " are cut; the format float32 keeps them"
    )


@checks.door
def decode(image: np.ndarray) -> np.ndarray:
  """Returns what `encode` made of samples, in float32 again."""
  return arrays.scale(image) if image.dtype == np.uint8 else image


@checks.door
def merge(folder: pathlib.Path, path: pathlib.Path) -> None:
  """Writes all shards of a complete job as one .npz of image and label."""
  parts = [shards.read(folder, k) for k, _, _ in shards.expected(folder)]
  whole = {
    name: np.concatenate([part[name] for part in parts])
    for name in ("image", "label")
  }
  shards.write_file(path, lambda f: np.savez(f, **whole))


@checks.door
def stored_setting(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the setting of the shards in a folder, empty if there are none.

  Raises:
    ValueError: if it cannot be read.
  """
  path = folder / shards.SETTING
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(
      f"{path} is not valid JSON ({e}), so that nobody knows what its shards"
      " are samples of; restore it from a copy, or delete the folder"
    ) from e


@checks.door
def keep_setting(folder: pathlib.Path, setting: Mapping[str, Any]) -> None:
  """Writes what the samples of a folder depend on, or refuses another one.

  A larger number of samples is no other setting: the job goes on.

  Raises:
    ValueError: if the folder holds samples of another setting, or shards of
      an unknown one; the entries that differ are named.
  """
  setting = json.loads(json.dumps(setting))
  there = shards.numbers(folder)  # first: another process may begin meanwhile
  stored = stored_setting(folder)
  if there and not stored:
    raise ValueError(
      f"{folder} holds shards but no {shards.SETTING}, so that nobody knows"
      " what they are samples of; give another folder, or remove them"
    )
  differ = [
    f"{name} is {stored.get(name)!r} there and {setting.get(name)!r} here"
    for name in {**setting, **stored}
    if stored and name != "num" and stored.get(name) != setting.get(name)
  ]
  if differ:
    raise ValueError(
      f"{folder} holds samples of another setting: {'; '.join(differ)}. Give"
      f" another folder, or remove {folder} to draw them anew"
    )
  if stored.get("num", 0) > setting["num"]:
    raise ValueError(
      f"{folder} holds a job of {stored['num']} samples, of which"
      f" num={setting['num']} are the first; take them from there, go on with"
      f" num={stored['num']}, or give another folder"
    )
  if setting != stored:
    text = json.dumps(setting, indent=2) + "\n"
    shards.write_file(folder / shards.SETTING, lambda f: f.write(text.encode()))
