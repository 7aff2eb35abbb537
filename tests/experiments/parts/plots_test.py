"""Folders of pictures, and the public data sets, in the forms users have."""

import gzip
import io
import os
import pathlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

from experiments import prepare_data
from experiments.parts import sources
from jaxdiff import data
from jaxdiff.data import images
from jaxdiff.data import named
from jaxdiff.data import published
from tests import ROOT

Image = pytest.importorskip("PIL.Image")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
  return path


def plain(value, height=8, width=8):
  return np.full((height, width, 3), value, np.uint8)


# One picture.


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_formats_are_read(tmp_path, suffix):
  lossless = {"lossless": True} if suffix == "webp" else {}
  path = save(tmp_path / f"a.{suffix}", plain(200), **lossless)
  assert abs(images.decode(path).astype(int) - 200).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_orientation_is_applied(tmp_path, orientation):
  # What the camera saw, and how a camera held otherwise has stored it.
  seen = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
  undo = {
    1: seen,
    2: seen[:, ::-1],
    3: seen[::-1, ::-1],
    4: seen[::-1],
    5: seen.T,
    6: np.rot90(seen),
    7: seen[::-1, ::-1].T,
    8: np.rot90(seen, -1),
  }
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = save(tmp_path / "a.png", undo[orientation], exif=exif)
  np.testing.assert_array_equal(images.decode(path, channels=1)[..., 0], seen)


def test_the_largest_centre_is_kept_and_averaged(tmp_path):
  pixels = np.zeros((4, 10, 3), np.uint8)
  pixels[:, 3:7] = 100  # the central square
  path = save(tmp_path / "a.png", pixels)
  assert (images.decode(path, 4) == 100).all()
  assert (images.decode(path, 2) == 100).all()
  # Fine stripes become their mean, but for the rim: no aliasing.
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 200
  small = images.decode(save(tmp_path / "b.png", stripes), 8)
  assert (small[:, 1:-1] == 100).all()
  # A smaller centre leaves out what lies around it.
  framed = np.zeros((8, 8, 3), np.uint8)
  framed[2:6, 2:6] = 50
  path = save(tmp_path / "c.png", framed)
  assert (images.decode(path, 4, crop=4) == 50).all()


def test_grey_colour_transparency_palettes_and_16_bits(tmp_path):
  grey = save(tmp_path / "grey.png", np.full((4, 4), 90))
  assert images.decode(grey).shape == (4, 4, 3)
  assert (images.decode(grey) == 90).all()
  colour = save(tmp_path / "colour.png", plain(90))
  assert images.decode(colour, channels=1).shape == (8, 8, 1)
  # Wholly transparent red is the white behind it, not red.
  clear = save(tmp_path / "clear.png", np.full((4, 4, 4), (*RED, 0)))
  assert (images.decode(clear) == 255).all()
  assert (images.decode(clear, channels=1) == 255).all()
  assert (images.decode(clear, channels=4)[..., 3] == 0).all()
  palette = Image.new("P", (4, 4), 1)
  palette.putpalette([*RED, *BLUE])
  palette.save(tmp_path / "p.png", transparency=0)
  assert (images.decode(tmp_path / "p.png") == BLUE).all()
  wide = Image.fromarray(np.full((4, 4), 200 * 256 + 7, np.uint16))
  wide.save(tmp_path / "wide.png")
  assert (images.decode(tmp_path / "wide.png") == 200).all()


# Folders.


@pytest.fixture
def folder(tmp_path):
  """Two classes, one with a folder inside; pixel values name the pictures."""
  for value, name in enumerate(
    ["cat/b.png", "cat/deep/a.jpg", "cat/c.PNG", "dog/a.webp", "dog/.hidden"]
  ):
    if name.endswith("hidden"):
      (tmp_path / name).write_text("a file of the system")
    else:
      save(tmp_path / name, plain(40 * value, 6, 9))
  return tmp_path


def test_a_folder_is_read_in_order_with_its_classes(folder):
  source = data.load(f"folder:{folder}", size=4, scale=False)
  assert source.classes == ("cat", "dog")
  paths = ["cat/b.png", "cat/c.PNG", "cat/deep/a.jpg", "dog/a.webp"]
  assert [p.replace(os.sep, "/") for p in source.paths] == paths
  values = [int(e["image"].mean().round()) for e in source]
  assert values == [0, 80, 40, 120]
  assert [int(e["label"]) for e in source] == [0, 0, 0, 1]
  assert source[0]["image"].shape == (4, 4, 3)
  assert source[0]["image"].dtype == np.uint8
  batch = next(data.batches(data.from_folder(folder, size=4), 4, seed=0))
  assert batch["image"].shape == (4, 4, 4, 3)
  assert batch["image"].dtype == np.float32
  assert batch["label"].dtype == np.int32
  assert set(data.from_folder(folder, labels=False)[0]) == {"image"}


def test_nothing_is_decoded_before_it_is_asked_for(folder, monkeypatch):
  monkeypatch.setattr(images, "decode", lambda *_, **__: 1 / 0)
  source = data.from_folder(folder)
  assert len(source) == 4
  with pytest.raises(ZeroDivisionError):
    source[0]


def test_pictures_beside_classes_have_none(folder):
  save(folder / "loose.png", plain(0))
  assert data.from_folder(folder, size=4).labels is None
  with pytest.raises(ValueError, match=r"in no class: 'loose.png'.*Move each"):
    data.from_folder(folder, labels=True)


def test_a_file_that_is_no_picture_is_named_or_left_out(folder):
  (folder / "dog" / "readme.txt").write_text("no picture")
  (folder / "dog" / "fake.png").write_text("no picture either")
  whole = (folder / "cat" / "b.png").read_bytes()
  (folder / "cat" / "short.png").write_bytes(whole[: len(whole) // 2])
  jpeg = (folder / "cat" / "deep" / "a.jpg").read_bytes()
  (folder / "cat" / "short.jpg").write_bytes(jpeg[:-30])
  with pytest.raises(ValueError, match=r"1 file\(s\).*readme.txt.*skip_bad"):
    data.from_folder(folder)
  (folder / "dog" / "readme.txt").rename(folder / "dog" / ".readme")
  source = data.from_folder(folder, size=4)
  broken = [i for i, p in enumerate(source.paths) if "short" in p or "fak" in p]
  assert len(broken) == 3
  for i in broken:
    with pytest.raises(ValueError, match=source.paths[i]):
      source[i]
  (folder / "dog" / ".readme").rename(folder / "dog" / "readme.txt")
  with pytest.warns(UserWarning, match="left out 4 of 8 files") as caught:
    good = data.from_folder(folder, size=4, skip_bad=True)
  assert len(caught) == 1
  assert len(good) == len(list(good)) == 4
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for name in good.paths:
      save(folder / "clean" / name, plain(0))
    assert len(data.from_folder(folder / "clean", skip_bad=True)) == 4


def test_a_folder_without_pictures_or_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"holds no pictures.*\*\.png"):
    data.from_folder(tmp_path)
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    data.from_folder(tmp_path / "none")
  with pytest.raises(ValueError, match="size: got 0"):
    data.from_folder(tmp_path, size=0)
  with pytest.raises(ValueError, match="channels must be one of"):
    data.from_folder(tmp_path, channels=2)


def test_pictures_of_different_sizes_need_a_size(folder):
  save(folder / "cat" / "large.png", plain(0, 12, 12))
  source = data.from_folder(folder)
  with pytest.raises(ValueError, match=r"examples . and . have shapes .*size="):
    next(data.batches(source, 5, seed=0, shuffle=False))
  with pytest.raises(ValueError, match="have shapes"):
    data.in_memory(source)


def test_in_memory_is_the_source_itself(folder):
  source = data.from_folder(folder, size=4)
  held = data.in_memory(source)
  assert {k: (v.shape, v.dtype.name) for k, v in held.items()} == {
    "image": ((4, 4, 4, 3), "float32"),
    "label": ((4,), "int32"),
  }
  for i, example in enumerate(source):
    for name, value in example.items():
      np.testing.assert_array_equal(held[name][i], value)
  assert data.in_memory(held) is held


# Public data sets, as their authors published them.


def cifar_files(root, folder, write):
  """Writes all six batches of four pictures; returns them as they are meant."""
  rng = np.random.default_rng(0)
  home = root / folder
  home.mkdir(parents=True)
  sets = {}
  for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
    image = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    label = rng.integers(0, 10, 4)
    rows = image.transpose(0, 3, 1, 2).reshape(4, 3072)
    write(home / name, rows, label)
    sets[name] = (image, label)
  train = [sets[f"data_batch_{i}"] for i in range(1, 6)]
  return {
    "train": [np.concatenate(part) for part in zip(*train)],
    "test": sets["test_batch"],
  }


def write_pickle(path, rows, label):
  content = {b"data": rows, b"labels": label.tolist(), b"batch_label": b"one"}
  path.write_bytes(pickle.dumps(content, protocol=2))


def write_binary(path, rows, label):
  joined = np.concatenate([label[:, None].astype(np.uint8), rows], axis=1)
  path.with_suffix(".bin").write_bytes(joined.tobytes())


@pytest.mark.parametrize(
  ("folder", "write"),
  [
    ("cifar-10-batches-py", write_pickle),
    ("cifar-10-batches-bin", write_binary),
  ],
)
def test_cifar10_is_read_as_published(tmp_path, folder, write):
  expected = cifar_files(tmp_path, folder, write)
  for split, (image, label) in expected.items():
    for path in (tmp_path, tmp_path / folder):
      read = data.load("cifar10", path=path, split=split, scale=False)
      np.testing.assert_array_equal(read["image"], image)
      np.testing.assert_array_equal(read["label"], label)
  scaled = data.load("cifar10", path=tmp_path)["image"]
  assert scaled.dtype == np.float32
  assert -1 <= scaled.min() < -0.9 < 0.9 < scaled.max() <= 1


class Malicious:
  def __reduce__(self):
    return (os.system, ("touch /tmp/jaxdiff_was_here",))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
  cifar_files(tmp_path, "cifar-10-batches-py", write_pickle)
  batch = tmp_path / "cifar-10-batches-py" / "test_batch"
  batch.write_bytes(pickle.dumps({b"data": Malicious(), b"labels": []}))
  with pytest.raises(
    ValueError, match=r"test_batch'.*asks to call (posix|nt).system"
  ):
    published.cifar10(tmp_path, "test")
  assert not pathlib.Path("/tmp/jaxdiff_was_here").exists()
  batch.write_bytes(batch.read_bytes()[:10])
  with pytest.raises(ValueError, match="is no batch of CIFAR-10"):
    published.cifar10(tmp_path, "test")
  with pytest.raises(FileNotFoundError, match=r"data_batch_1.*kriz"):
    data.load("cifar10", path=tmp_path / "none")


def idx(array):
  head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
  return head + array.tobytes()


@pytest.mark.parametrize("form", ["keras", "idx", "idx.gz"])
def test_mnist_is_read_as_published(tmp_path, form):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (5, 28, 28), np.uint8)
  y = rng.integers(0, 10, 5).astype(np.uint8)
  path = tmp_path
  if form == "keras":
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
  else:
    pack = gzip.compress if form == "idx.gz" else bytes
    dot = ".gz" if form == "idx.gz" else ""
    for name, array in [("images-idx3", x), ("labels-idx1", y)]:
      (path / f"train-{name}-ubyte{dot}").write_bytes(pack(idx(array)))
  read = data.load("mnist", path=path, scale=False)
  np.testing.assert_array_equal(read["image"], x[..., None])
  np.testing.assert_array_equal(read["label"], y)
  assert read["label"].dtype == np.int32
  if form == "keras":
    assert len(data.load("mnist", path=path, split="test")["image"]) == 2
    return
  with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte.*Keras"):
    data.load("mnist", path=path, split="test")
  file = path / f"train-images-idx3-ubyte{dot}"
  file.write_bytes(file.read_bytes()[:-50])
  with pytest.raises(ValueError, match="no idx file of MNIST .* cut short"):
    data.load("mnist", path=path)


def test_imagenet_batches_are_joined_in_the_order_of_their_numbers(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (10 * 2, 32, 32, 3), np.uint8)
  rows = image.transpose(0, 3, 1, 2).reshape(20, -1)
  for i in range(10):
    part = slice(2 * i, 2 * i + 2)
    np.savez(
      tmp_path / f"train_data_batch_{i + 1}.npz",
      data=rows[part],
      labels=np.arange(1, 21)[part],
      mean=np.zeros(3072),
    )
  read = data.load("imagenet32", path=tmp_path, scale=False)
  np.testing.assert_array_equal(read["image"], image)
  np.testing.assert_array_equal(read["label"], np.arange(20))
  with pytest.raises(ValueError, match="images of 64x64"):
    data.load("imagenet64", path=tmp_path)
  with pytest.raises(FileNotFoundError, match=r"val_data.npz.*image-net"):
    data.load("imagenet32", path=tmp_path, split="validation")
  with pytest.raises(ValueError, match="split must be one of"):
    data.load("imagenet32", path=tmp_path, split="test")


def test_celeba_splits_by_number(tmp_path, monkeypatch):
  splits = {"train": (0, 2), "validation": (2, 3), "test": (3, 4)}
  monkeypatch.setattr(named, "_CELEBA", splits)
  pixels = np.zeros((218, 178, 3), np.uint8)
  pixels[39:179, 19:159] = 77  # the central 140 x 140
  for i in range(4):
    save(tmp_path / f"{i + 1:06d}.png", pixels)
  for split, (first, end) in splits.items():
    source = data.load("celeba", path=tmp_path, split=split, scale=False)
    assert list(source.paths) == [f"{i + 1:06d}.png" for i in range(first, end)]
    assert source[0]["image"].shape == (64, 64, 3)
    assert (source[0]["image"] == 77).all()
  save(tmp_path / "000005.png", pixels)
  with pytest.raises(ValueError, match=r"5 pictures, but CelebA has 4"):
    data.load("celeba", path=tmp_path)


# Public data sets, as TensorFlow Datasets prepares them.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """CelebA and ImageNet-32 of two pictures each, by the real library."""
  tfds = pytest.importorskip("tensorflow_datasets")

  def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file

  face = np.zeros((218, 178, 3), np.uint8)
  face[39:179, 19:159] = 77
  pictures = {"celeb_a": face, "downsampled_imagenet": plain(5, 32, 32)}
  root = tmp_path_factory.mktemp("tfds")
  for title, pixels in pictures.items():
    features = tfds.features.FeaturesDict(
      {"image": tfds.features.Image(shape=(None, None, 3))}
    )
    config = title == "downsampled_imagenet"

    class Pictures(tfds.core.GeneratorBasedBuilder):
      name = title
      VERSION = tfds.core.Version("2.0.0")
      BUILDER_CONFIGS = (
        [tfds.core.BuilderConfig(name="32x32")] if config else []
      )

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features)  # noqa: B023

      def _split_generators(self, manager):
        del manager
        return {"train": self._generate_examples()}

      def _generate_examples(self):
        for i in range(2):
          yield i, {"image": png(pixels)}  # noqa: B023

    Pictures(data_dir=root, file_format="array_record").download_and_prepare()
  return root


def test_named_sets_are_read_where_they_are_prepared(prepared):
  faces = data.load("celeba", data_dir=prepared, scale=False)
  assert (faces[1]["image"] == np.full((64, 64, 3), 77, np.uint8)).all()
  assert set(faces[0]) == {"image"}
  small = data.load("imagenet32", data_dir=prepared)
  batch = next(data.batches(small, 2, seed=0))
  np.testing.assert_allclose(batch["image"], 5 / 127.5 - 1, atol=1e-6)
  assert data.in_memory(small)["image"].shape == (2, 32, 32, 3)


@pytest.mark.parametrize("name", named.SETS)
def test_a_named_set_that_is_absent_says_how_to_get_it(tmp_path, name):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(FileNotFoundError) as error:
    data.load(name, data_dir=tmp_path)
  message = str(error.value)
  assert f"tfds.builder('{named.SETS[name].tfds}'" in message
  assert "download_and_prepare()" in message
  assert f"data.load('{name}', path=...)" in message


# What the scripts make of them.


def test_sheets_of_cifar10_are_cut_in_order(tmp_path):
  # 25 rows of 40 pictures, each of one colour that is its number.
  number = np.arange(1000).reshape(25, 1, 40, 1)
  number = np.broadcast_to(number, (25, 32, 40, 32)).reshape(800, 1280)
  sheet = np.stack([number // 256, number % 256, number * 0], axis=-1)
  for i in range(2):
    sheet[..., 2] = i
    save(tmp_path / f"train_{i:02d}.webp", sheet, lossless=True)
  with pytest.raises(FileNotFoundError, match=r"2 sheets .* no labels\.npz"):
    prepare_data.cifar10_sheets(tmp_path, "train")
  np.savez(tmp_path / "labels.npz", y_train=np.arange(3000) % 10)
  fields = prepare_data.cifar10_sheets(tmp_path, "train")
  expected = np.arange(2000) % 1000
  for pixel in (fields["image"][:, 0, 0], fields["image"][:, 31, 31]):
    pixel = pixel.astype(int)
    np.testing.assert_array_equal(pixel[:, 0] * 256 + pixel[:, 1], expected)
    np.testing.assert_array_equal(pixel[:, 2], np.arange(2000) // 1000)
  np.testing.assert_array_equal(fields["label"], np.arange(2000) % 10)
  save(tmp_path / "train_02.webp", plain(0))
  with pytest.raises(ValueError, match="8x8, but a sheet"):
    prepare_data.cifar10_sheets(tmp_path, "train")


def test_bytes_are_measured_in_the_units_of_training(folder):
  options = dict(size=4)
  scaled = sources.subset(data.from_folder(folder, **options))
  held = sources.subset(data.from_folder(folder, scale=False, **options))
  np.testing.assert_array_equal(held["image"], scaled["image"])
  assert held["image"].dtype == np.float32
  held = data.in_memory(data.from_folder(folder, scale=False, **options))
  np.testing.assert_array_equal(sources.images(held), scaled["image"])


@pytest.mark.slow
def test_a_folder_becomes_an_npz_that_is_read_back(folder):
  out = folder / ".made" / "mine.npz"
  command = [sys.executable, "-m", "experiments.prepare_data"]
  command += [f"--source=folder:{folder}", "--size=4", f"--out={out}"]
  root = ROOT
  done = subprocess.run(
    command, cwd=root, capture_output=True, text=True, check=True
  )
  assert "image uint8[4, 4, 4, 3], label int32[4]" in done.stdout
  read = data.load(f"npz:{out}")
  expected = data.in_memory(data.from_folder(folder, size=4))
  for name, value in expected.items():
    np.testing.assert_array_equal(read[name], value)
  done = subprocess.run(
    [*command, "--mnist=x"], cwd=root, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert "got --mnist and --source" in done.stderr
