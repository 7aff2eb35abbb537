r"""What reference implementations say of inputs that anybody can make again.

  python -m tests.metrics.golden_run

writes golden/inception.npz, golden/effnet.npz and golden/fidelity.npz, by
torch-fidelity and efficientnet_lite_pytorch; see golden/README.md. The tests
compare with the files, and where the packages are installed with them.
"""

import contextlib
import functools
import pathlib
import sys
import tempfile
import zlib
from unittest import mock

import jax
import numpy as np

from jaxdiff.metrics.features import efficientnet
from jaxdiff.metrics.features import inception
from tests import ROOT

GOLDEN = ROOT / "tests" / "golden"


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns f64 in [-sqrt 3, sqrt 3), of variance 1, that depend on the name.

  Raw bits, not a Generator: NumPy keeps the former the same for good.
  """
  raw = np.random.Philox(zlib.crc32(name.encode())).random_raw(np.prod(shape))
  u = (raw >> np.uint64(11)) * 2.0**-53
  return (np.sqrt(12.0) * (u - 0.5)).reshape(shape)


@functools.cache
def _inception_arrays() -> dict[str, np.ndarray]:
  """Returns the state dict of `inception_arrays`, made once."""
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
  init = inception.InceptionV3().init
  layers = jax.eval_shape(init, jax.random.key(0), image)["params"]
  arrays = {}
  for layer, leaves in layers.items():
    shape = leaves["kernel"].shape
    fan_in = np.prod(shape[:-1])
    if layer == "fc":
      arrays["fc.weight"] = uniform("fc.weight", shape[::-1]) / np.sqrt(fan_in)
      arrays["fc.bias"] = 0.1 * uniform("fc.bias", shape[-1:])
      continue
    name = f"{layer}.conv.weight"
    weight = uniform(name, (*shape[:-3:-1], *shape[:2]))
    arrays[name] = weight * np.sqrt(2.0 / fan_in)
    for part, mean, scale in (
      ("weight", 1.0, 0.2),
      ("bias", 0.0, 0.1),
      ("running_mean", 0.0, 0.1),
      ("running_var", 1.0, 0.2),
    ):
      name = f"{layer}.bn.{part}"
      arrays[name] = mean + scale * uniform(name, shape[-1:])
  return {name: v.astype(np.float32) for name, v in arrays.items()}


def inception_arrays() -> dict[str, np.ndarray]:
  """Returns a state dict that keeps the scale of activations, a copy."""
  return {name: v.copy() for name, v in _inception_arrays().items()}


def inception_images() -> np.ndarray:
  """Returns u8[2, 24, 20, 3]."""
  noise = uniform("images", (2, 24, 20, 3)) / np.sqrt(3.0)
  return np.uint8(128.0 + 127.0 * noise)


def effnet_images() -> np.ndarray:
  """Returns u8[1, 224, 224, 3], a part of scikit-learn's flower."""
  from sklearn import datasets

  flower = datasets.load_sample_image("flower.jpg")
  return flower[None, 200:424, 250:474]


def features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns features f32[120, 16], f32[100, 16] and logits f32[120, 12]."""
  x, y = uniform("x", (120, 16)), uniform("y", (100, 16)) + 0.5
  logits = 3.0 * uniform("logits", (120, 12))
  return tuple(np.float32(v) for v in (x, y, logits))


@contextlib.contextmanager
def fidelity():
  """Lets torch_fidelity be imported where torchvision does not work.

  It imports torchvision for data sets and extractors that are not used here.
  """
  try:
    import torchvision  # noqa: F401

    yield
  except (ImportError, RuntimeError):
    parts = ("", ".datasets", ".transforms", ".transforms.functional")
    absent = {f"torchvision{part}": mock.MagicMock() for part in parts}
    with mock.patch.dict(sys.modules, absent):
      yield


def reference_inception(path: pathlib.Path, images: np.ndarray):
  """Returns torch-fidelity's features and logits of u8 images."""
  import torch

  with fidelity():
    from torch_fidelity import feature_extractor_inceptionv3 as reference

    network = reference.FeatureExtractorInceptionV3(
      "reference", ["2048", "logits"], feature_extractor_weights_path=str(path)
    )
  with torch.no_grad():
    out = network(torch.tensor(images).permute(0, 3, 1, 2))
  return [v.numpy() for v in out]


def reference_effnet(images: np.ndarray):
  """Returns the PyTorch network's features and logits of u8 images."""
  import torch
  from efficientnet_lite_pytorch import EfficientNet

  network = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=str(efficientnet.packaged())
  ).eval()
  x = torch.tensor((images.astype(np.float32) - 127.0) / 128.0)
  x = x.permute(0, 3, 1, 2)
  with torch.no_grad():
    pooled = network.extract_features(x).mean((2, 3))
    return [pooled.numpy(), network(x).numpy()]


def reference_metrics() -> dict[str, float]:
  """Returns torch-fidelity's metrics of `features()`."""
  import torch

  x, y, logits = map(torch.tensor, features())
  quiet = {"verbose": False, "rng_seed": 0}
  with fidelity():
    from torch_fidelity import metric_fid
    from torch_fidelity import metric_isc
    from torch_fidelity import metric_kid
    from torch_fidelity import metric_prc

    fid = metric_fid.fid_statistics_to_metric(
      metric_fid.fid_features_to_statistics(x.double()),
      metric_fid.fid_features_to_statistics(y.double()),
      False,
    )
    # one subset of all 100: nothing depends on the order they are drawn in
    kid = metric_kid.kid_features_to_metric(
      x[:100].double(),
      y.double(),
      kid_subsets=1,
      kid_subset_size=100,
      **quiet,
    )
    isc = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    prc = metric_prc.prc_features_to_metric(x, y, prc_neighborhood=3, **quiet)
  values = {**fid, **kid, **isc, **prc}
  return {
    name: v
    for name, v in values.items()
    if "kernel_" not in name or "mean" in name
  }


def main() -> None:
  import torch

  torch.set_num_threads(1)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "inception.pth"
    torch.save(
      {n: torch.tensor(v) for n, v in inception_arrays().items()}, path
    )
    pooled, logits = reference_inception(path, inception_images())
  np.savez(
    GOLDEN / "inception.npz", features=pooled[:, ::16], logits=logits[:, ::16]
  )
  pooled, logits = reference_effnet(effnet_images())
  np.savez(
    GOLDEN / "effnet.npz", features=pooled[:, ::4], logits=logits[:, ::8]
  )
  np.savez(GOLDEN / "fidelity.npz", **reference_metrics())


if __name__ == "__main__":
  main()
