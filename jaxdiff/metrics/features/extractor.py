"""Feature extractors by name, and the loop that runs one over many images."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import archives
from jaxdiff import pickles
from jaxdiff.metrics.features import checksum
from jaxdiff.metrics.features import digits
from jaxdiff.metrics.features import efficientnet
from jaxdiff.metrics.features import inception
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

_FID = "6726825d"  # how the SHA-256 of the published weights begins


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A network that makes features, and what numbers in them are called.

  Calling it with images f[batch, height, width, channels], f32 in [-1, 1] or
  u8, returns features f32[batch, d].

  Attributes:
    name: name of the extractor.
    distance: what a Frechet distance in these features is called.
    apply: function of (params, images) -> (features f[batch, d], logits
      f[batch, classes] or None).
    params: parameters of the network.
    check: raises a ValueError for images that `apply` does not take.
    weights: where the params come from, with their checksum.
  """

  name: str
  distance: str
  apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
  params: PyTree = None
  check: Callable[[np.ndarray], None] = lambda images: None
  weights: str = ""

  def __call__(self, images: ArrayLike) -> jax.Array:
    self.check(images)
    return _run(self.apply)(self.params, images)[0]


def load(name: str, weights: str | None = None) -> Extractor:
  """Returns the extractor `name`.

  Args:
    name: `"inception"` (2048 features, the FID; the weights file is yours to
      name), `"effnet"` (1280 features of EfficientNet-Lite0, FD-EffNet),
      `"digits"` (64 features of a classifier of 8 x 8 digits) or `"pixels"`.
    weights: file of the weights, a PyTorch state dict (.pth) or an .npz of its
      arrays; where its name ends in the digits of a checksum, that is compared.

  Raises:
    ValueError: for an unknown name, or weights that do not fit.
    ImportError: the package of EfficientNet-Lite0 is not installed.
    FileNotFoundError: the weights are not there.
  """
  if name not in EXTRACTORS:
    raise ValueError(
      f"features: got {name!r}, expected one of {', '.join(EXTRACTORS)}"
    )
  extractor = EXTRACTORS[name](weights)
  return dataclasses.replace(extractor, params=jax.device_put(extractor.params))


def extract(
  extractor: Extractor,
  images: np.ndarray | Iterable[np.ndarray],
  *,
  batch: int = 32,
  numbers: Sequence[int] | None = None,
  sharding: jax.sharding.Sharding | None = None,
  show: Callable[[int], Any] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns (features f32[n, d], logits f32[n, classes] or None).

  One program of one shape is compiled: a batch that is not full is padded.

  Args:
    extractor: extractor of `load`.
    images: [n, ...], or blocks of them one after the other, for sets that are
      not held in memory.
    batch: images at a time.
    numbers: indices of the images in the set that they come from, for messages.
    sharding: sharding of a batch over devices, for instance
      parallel.batch_sharding(parallel.data_mesh()); batch is rounded up to a
      multiple of them.
    show: called with the number of images done, for a progress bar.

  Raises:
    ValueError: there are no images, they have the wrong shape, or one of them
      holds NaN; it is named by its number.
  """
  if hasattr(images, "shape"):
    batch = max(1, min(batch, len(images)))
    images = np.split(images, range(batch, len(images), batch))
  if sharding is not None:
    batch = -(-batch // sharding.num_devices) * sharding.num_devices
  run, features, logits, done = _run(extractor.apply), [], [], 0

  def keep(size: int, f: jax.Array, l: jax.Array | None) -> None:
    features.append(np.asarray(f, np.float32)[:size])
    logits.append(None if l is None else np.asarray(l)[:size])
    if show:
      show(size)

  running = None  # one batch is computed while the next one is read
  for block in map(np.asarray, images):
    bad = ~np.isfinite(block).all(tuple(range(1, block.ndim)))
    if bad.any():
      first = done + int(bad.argmax())
      raise ValueError(
        f"image number {first if numbers is None else numbers[first]} (from 0)"
        " holds NaN or infinity; look at how it was sampled or read"
      )
    extractor.check(block)
    for i in range(0, len(block), batch):
      part = block[i : i + batch]
      padded = np.concatenate([part, part[-1:].repeat(batch - len(part), 0)])
      if sharding is not None:
        padded = jax.device_put(padded, sharding)
      ahead = (len(part), *run(extractor.params, padded))
      if running:
        keep(*running)
      running = ahead
      done += len(part)
  if not running:
    raise ValueError("there are no images: got an empty set")
  keep(*running)
  values = np.concatenate(features)
  return values, None if logits[0] is None else np.concatenate(logits)


@functools.lru_cache(maxsize=8)
def _run(apply: Callable) -> Callable:
  return jax.jit(apply)


def pixels_8_bit(images: jax.Array) -> jax.Array:
  """Returns f32[batch, height, width, 3], 0..255, as a saved file has them.

  Numbers in papers are those of 8-bit images: floats are rounded to them.
  """
  if images.dtype != jnp.uint8:
    images = jnp.clip(jnp.round((images + 1.0) * 127.5), 0.0, 255.0)
  shape = (*images.shape[:-1], 3)
  return jnp.broadcast_to(images.astype(jnp.float32), shape)


def _check_images(images: np.ndarray) -> None:
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise ValueError(
      "expected images [n, height, width, 1 or 3], got shape"
      f" {images.shape}; use the features 'pixels' for other data"
    )
  largest = np.abs(images).max(initial=0.0)
  if images.dtype != np.uint8 and largest > 16.0:
    raise ValueError(
      "expected images in [-1, 1] or of type uint8, got"
      f" {images.dtype} values up to {largest:g}; give pixels 0..255 as uint8"
    )


def _check_digits(images: np.ndarray) -> None:
  if images.shape[1:] != digits.SHAPE or images.dtype == np.uint8:
    raise ValueError(
      "the features 'digits' take the 8 x 8 digits of data.load('digits'), f32"
      f"[n, 8, 8, 1] in [-1, 1], got {images.dtype}{list(images.shape)}; use"
      " 'effnet' or 'pixels'"
    )


def _arrays(path: str) -> tuple[dict[str, np.ndarray], str]:
  """Returns the arrays of a file, and what it is, in words."""
  read = _npz if pathlib.Path(path).suffix == ".npz" else pickles.state_dict
  arrays = read(path)
  digest = checksum.of(path)
  return arrays, f"{pathlib.Path(path).name}, SHA-256 {digest}"


def _npz(path: str) -> dict[str, np.ndarray]:
  return archives.read(path, "The weights are an .npz of plain arrays.")


def _inception(weights: str | None) -> Extractor:
  if weights is None:
    raise ValueError(
      "the features 'inception' need weights=FILE: the state dict"
      " pt_inception-2015-12-05-6726825d.pth of pytorch-fid (releases of"
      " github.com/mseitzer/pytorch-fid), or an .npz of its arrays; features"
      " without a download: 'effnet'"
    )
  arrays, source = _arrays(weights)
  published = f"SHA-256 {_FID}" in source
  return Extractor(
    name="inception",
    distance="FID" if published else "FD-Inception",
    apply=_inception_apply,
    params=inception.from_torch(arrays),
    check=_check_images,
    weights=source,
  )


def _inception_apply(params: PyTree, images: jax.Array) -> Any:
  network = inception.InceptionV3()
  pooled, logits = network.apply({"params": params}, pixels_8_bit(images))
  # The Inception score is defined by logits without their bias: its first code
  # and torch-fidelity leave it out.
  return pooled, logits - params["fc"]["bias"]


def _effnet(weights: str | None) -> Extractor:
  arrays, source = _arrays(weights or str(efficientnet.packaged()))
  return Extractor(
    name="effnet",
    distance="FD-EffNet",
    apply=_effnet_apply,
    params=efficientnet.from_torch(arrays),
    check=_check_images,
    weights=source,
  )


def _effnet_apply(params: PyTree, images: jax.Array) -> Any:
  network = efficientnet.EfficientNetLite0()
  return network.apply({"params": params}, pixels_8_bit(images))


def _digits(weights: str | None) -> Extractor:
  path = pathlib.Path(weights) if weights else digits.WEIGHTS
  return Extractor(
    name="digits",
    distance="FD-digits",
    apply=_digits_apply,
    params=digits.load(path),
    check=_check_digits,
    weights=f"{path.name}, SHA-256 {checksum.of(path)}",
  )


def _digits_apply(params: PyTree, images: jax.Array) -> Any:
  return digits.DigitsClassifier().apply({"params": params}, images)


def _pixels(weights: str | None) -> Extractor:
  if weights is not None:
    raise ValueError("the features 'pixels' have no weights; leave them out")
  return Extractor("pixels", "FD-pixels", _pixels_apply)


def _pixels_apply(params: PyTree, images: jax.Array) -> Any:
  del params
  if images.dtype == jnp.uint8:  # in the units of floats
    images = images.astype(jnp.float32) / 127.5 - 1.0
  return images.reshape(len(images), -1), None


EXTRACTORS = {
  "inception": _inception,
  "effnet": _effnet,
  "digits": _digits,
  "pixels": _pixels,
}
