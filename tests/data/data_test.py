"""Data: conventions of the readers, order and resumption of the iterator."""

import io
import json
import os
import shlex
import subprocess
import sys
import warnings

import chex
import jax
import numpy as np
import pytest

from jaxdiff import data


def numbered(size):
  """A source whose examples name themselves."""
  return {
    "id": np.arange(size),
    "pair": {"x": np.arange(2 * size).reshape(-1, 2)},
  }


def ids(iterator, count):
  return [next(iterator)["id"].tolist() for _ in range(count)]


class Sequence:
  """A source that is read example by example and counts what is read."""

  def __init__(self, size):
    self.size = size
    self.read = []

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    assert type(index) is int  # Sources need not take NumPy's integers.
    self.read.append(index)
    return {"id": np.int64(index)}


class Bulk(Sequence):
  """As before, by one call for a batch."""

  def __getitem__(self, index):
    raise AssertionError("one by one, although __getitems__ is there")

  def __getitems__(self, indices):
    return [{"id": np.int64(i)} for i in indices]


# The iterator.


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9])
def test_resumed_iterator_continues_bit_identically(stop, prefetch):
  options = dict(seed=7, prefetch=prefetch)
  straight = data.batches(numbered(22), 5, **options)
  expected = [next(straight) for _ in range(stop + 12)][stop:]
  first = data.batches(numbered(22), 5, **options)
  for _ in range(stop):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  second = data.batches(numbered(22), 5, **options)
  next(second)
  second.set_state(state)
  for batch in expected:
    chex.assert_trees_all_equal(next(second), batch)


def test_state_is_a_few_plain_ints():
  state = data.batches(numbered(10**5), 5, seed=np.int64(3)).get_state()
  assert all(type(value) is int for value in state.values())
  assert len(json.dumps(state)) < 150


@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("hosts", [2, 3, 6])
def test_union_of_hosts_is_the_single_host_batch(hosts, drop_remainder):
  options = dict(
    batch_size=6, seed=1, drop_remainder=drop_remainder, num_epochs=3
  )
  alone = list(data.batches(numbered(20), **options))
  shares = [
    list(data.batches(numbered(20), host_index=i, host_count=hosts, **options))
    for i in range(hosts)
  ]
  assert {len(share) for share in shares} == {len(alone)}
  for batch, *parts in zip(alone, *shares):
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    chex.assert_trees_all_equal(joined, batch)
    if len(batch["id"]) == 6:
      assert {len(part["id"]) for part in parts} == {6 // hosts}


def test_resuming_with_another_number_of_hosts_keeps_the_order():
  alone = data.batches(numbered(20), 6, seed=1)
  ids(alone, 4)
  halves = [
    data.batches(numbered(20), 6, seed=1, host_index=i, host_count=2)
    for i in range(2)
  ]
  for half in halves:
    half.set_state(alone.get_state())
  joined = [a + b for a, b in zip(*(ids(half, 5) for half in halves))]
  assert joined == ids(alone, 5)


def test_a_host_reads_its_own_rows_only():
  source = Sequence(40)
  share = data.batches(source, 8, seed=0, host_index=1, host_count=4)
  seen = np.concatenate(ids(share, 5)).tolist()
  assert source.read == seen
  assert len(seen) == 10


def test_every_epoch_holds_every_example_once_in_a_new_order():
  iterator = data.batches(numbered(24), 4, seed=0, num_epochs=3)
  order = np.array([b["id"] for b in iterator]).reshape(3, 24)
  assert (np.sort(order, axis=1) == np.arange(24)).all()
  assert len({tuple(epoch) for epoch in order}) == 3


def test_seeds_share_no_epoch():
  # Seed + epoch as the seed of an epoch would make most of these equal.
  orders = {
    tuple(np.concatenate(ids(it, 2)))
    for seed in [0, 1, 2, 3, 2**32, 2**64]
    for it in [data.batches(numbered(32), 16, seed=seed)]
    for _ in range(6)
  }
  assert len(orders) == 36


def test_every_example_is_equally_likely_at_every_place():
  orders = np.array(
    [
      data.batches(numbered(8), 8, seed=seed).__next__()["id"]
      for seed in range(4000)
    ]
  )
  counts = np.stack([(orders == i).sum(0) for i in range(8)])
  statistic = ((counts - 500) ** 2 / 500).sum()
  # 49 degrees of freedom: 1e-6 of permutations exceed it. The seeds are fixed.
  assert statistic < 110


def test_order_is_the_same_in_every_version():
  # Philox's raw bits are fixed by its definition: a run resumed years later
  # meets the same order.
  iterator = data.batches(numbered(10), 10, seed=0)
  assert ids(iterator, 2) == [
    [1, 4, 5, 6, 8, 2, 0, 3, 9, 7],
    [7, 8, 6, 2, 9, 3, 1, 0, 4, 5],
  ]


def test_unshuffled_batches_keep_the_order_of_the_source():
  iterator = data.batches(
    numbered(5), 2, seed=0, shuffle=False, num_epochs=2, drop_remainder=False
  )
  expected = [[0, 1], [2, 3], [4]] * 2
  assert [b["id"].tolist() for b in iterator] == expected


def test_remainder_is_dropped_and_iterator_stays_at_its_end():
  iterator = data.batches(numbered(5), 2, seed=0, num_epochs=2)
  assert [len(b["id"]) for b in iterator] == [2, 2, 2, 2]
  with pytest.raises(StopIteration):
    next(iterator)


@pytest.mark.parametrize("source", [Sequence(20), Bulk(20)])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_sequences_and_arrays_give_the_same_batches(source, prefetch):
  one = data.batches(source, 6, seed=5, num_epochs=4, prefetch=prefetch)
  two = data.batches(numbered(20), 6, seed=5, num_epochs=4)
  assert [b["id"].tolist() for b in one] == [b["id"].tolist() for b in two]


def test_a_batch_shares_no_memory_with_the_source():
  source = numbered(4)
  next(data.batches(source, 4, seed=0, shuffle=False))["id"][:] = -1
  assert source["id"].tolist() == [0, 1, 2, 3]


def test_an_error_of_the_source_reaches_the_caller_of_a_prefetched_batch():
  class Broken(Sequence):
    def __getitem__(self, index):
      raise OSError("disk")

  with pytest.raises(OSError, match="disk"):
    next(data.batches(Broken(4), 2, seed=0, prefetch=2))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(batch_size=0), "batch_size: got 0"),
    (dict(batch_size=4, host_count=3), "multiple of the 3 host"),
    (dict(batch_size=4, host_index=2, host_count=2), "host_index: got 2 of 2"),
    (dict(batch_size=11), "10 examples, too few for one batch of 11"),
    (dict(batch_size=2, seed=-1), "seed: got -1"),
    (dict(batch_size=2, num_epochs=-1), "num_epochs: got -1"),
    (dict(batch_size=2, prefetch=-1), "prefetch: got -1"),
    (dict(batch_size=2, workers=-1), "workers: got -1"),
  ],
)
def test_bad_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    data.batches(numbered(10), **{"seed": 0, **options})


@pytest.mark.parametrize(
  "source", [{}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": 3.0}]
)
def test_arrays_without_one_length_are_refused(source):
  with pytest.raises(ValueError, match="the same first axis"):
    data.batches(source, 1, seed=0)


def test_a_state_of_another_order_is_refused():
  state = data.batches(numbered(10), 2, seed=0).get_state()
  with pytest.raises(ValueError, match=r"seed 0 \(here 1\)"):
    data.batches(numbered(10), 2, seed=1).set_state(state)
  with pytest.raises(ValueError, match=r"size 10 \(here 9\)"):
    data.batches(numbered(9), 2, seed=0).set_state(state)
  with pytest.raises(ValueError, match="got the entries"):
    data.batches(numbered(10), 2, seed=0).set_state({"step": 3})


# Data sets that need no download.


def test_digits_fill_the_range():
  digits = data.load("digits")
  assert digits["image"].shape == (1797, 8, 8, 1)
  assert digits["image"].dtype == np.float32
  assert (digits["image"].min(), digits["image"].max()) == (-1, 1)
  assert digits["label"].dtype == np.int32
  assert np.bincount(digits["label"]).shape == (10,)


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("split", ["train", "test"])
def test_patches_have_the_declared_form_and_repeat(size, split):
  name = f"patches{size}"
  one = data.load(name, split=split, count=101)
  two = data.load(name, split=split, count=101)
  assert one["image"].shape == (101, size, size, 3)
  assert one["image"].dtype == np.float32
  assert -1 <= one["image"].min() < one["image"].max() <= 1
  assert np.bincount(one["label"]).tolist() == [51, 50]
  chex.assert_trees_all_equal(one, two)
  other = data.load(name, split=split, count=101, seed=1)
  assert (one["image"] != other["image"]).any()


def test_train_and_test_patches_share_no_pixel(monkeypatch):
  import sklearn.datasets

  class Photographs:
    # Every pixel holds its column, in two channels of 8 bits.
    columns = np.broadcast_to(np.arange(640), (427, 640))
    image = np.stack(
      [columns // 256, columns % 256, columns * 0], axis=-1
    ).astype(np.uint8)
    images = (image, image)

  monkeypatch.setattr(
    sklearn.datasets, "load_sample_images", lambda: Photographs
  )
  seen = {}
  for split in ("train", "test"):
    image = data.patches(16, split=split, count=4000)["image"]
    pixels = np.round((image + 1) * 127.5).astype(int)
    seen[split] = pixels[..., 0] * 256 + pixels[..., 1]
  assert (seen["train"].min(), seen["train"].max()) == (0, 479)
  assert (seen["test"].min(), seen["test"].max()) == (480, 639)


def test_patch_positions_do_not_repeat_and_exhaust_the_region():
  positions = (427 - 160 + 1) * 1
  patches = data.patches(160, split="test", count=2 * positions)
  assert len(np.unique(patches["image"][::2, :, 0], axis=0)) == positions
  with pytest.raises(ValueError, match="268 positions"):
    data.patches(160, split="test", count=2 * positions + 1)
  with pytest.raises(ValueError, match="0 positions"):
    data.patches(161, split="test", count=2)
  with pytest.raises(ValueError, match="split must be one of"):
    data.patches(16, split="valid")


# Files.


def test_npz_is_read_scaled_and_renamed(tmp_path):
  path = tmp_path / "set.npz"
  np.savez(
    path,
    x=np.arange(256, dtype=np.uint8).reshape(4, 8, 8),
    y=np.arange(4, dtype=np.uint8),
    w=np.linspace(0, 1, 4),
    big=np.array([2**40] * 4),
  )
  keys = {"image": "x", "label": "y", "weight": "w", "big": "big"}
  fields = data.load(f"npz:{path}", keys=keys)
  assert fields["image"].shape == (4, 8, 8, 1)
  np.testing.assert_allclose(
    fields["image"].ravel(), np.linspace(-1, 1, 256), atol=1e-6
  )
  types = {name: str(value.dtype) for name, value in fields.items()}
  assert types == {
    "image": "float32",
    "label": "int32",
    "weight": "float32",
    "big": "int64",
  }


def test_npz_without_the_key_lists_the_keys_that_there_are(tmp_path):
  path = tmp_path / "set.npz"
  np.savez(path, x_train=np.zeros((2, 4, 4, 1)), y_train=np.zeros(2))
  with pytest.raises(ValueError, match=r"no 'image'; .*'x_train'"):
    data.from_npz(path)
  with pytest.raises(ValueError, match=r"no 'label'; .*'y_train'"):
    data.from_npz(path, keys=dict(image="x_train", label="label"))


def test_npz_needs_no_labels(tmp_path):
  np.savez(tmp_path / "set.npz", image=np.zeros((2, 4, 4, 1)))
  assert set(data.from_npz(tmp_path / "set.npz")) == {"image"}


def test_npz_that_is_missing_cut_short_or_uneven_is_refused(tmp_path):
  path = tmp_path / "set.npz"
  with pytest.raises(FileNotFoundError, match=r"no file .*set\.npz"):
    data.from_npz(path)
  np.savez(path, image=np.zeros((3, 4, 4, 1)), label=np.zeros(2))
  with pytest.raises(ValueError, match="the same first axis"):
    data.from_npz(path)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match="cut short"):
    data.from_npz(path)


def test_pixels_stay_bytes_until_they_are_scaled(tmp_path):
  pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
  np.savez(tmp_path / "set.npz", image=pixels, label=np.arange(4))
  held = data.load(f"npz:{tmp_path / 'set.npz'}", scale=False)
  whole = data.load(f"npz:{tmp_path / 'set.npz'}")
  np.testing.assert_array_equal(held["image"], pixels)
  # The same numbers, whether scaled at once, by batch, or on the device.
  options = dict(seed=0, num_epochs=1)
  later = data.batches(held, 2, transform=data.scaled, **options)
  for batch, raw, expected in zip(
    later, data.batches(held, 2, **options), data.batches(whole, 2, **options)
  ):
    assert raw["image"].dtype == np.uint8
    chex.assert_trees_all_equal(batch, expected)
    traced = jax.jit(data.scaled)(raw)
    np.testing.assert_allclose(traced["image"], expected["image"], atol=1e-7)
    assert data.scaled(expected)["image"] is expected["image"]
  patches = data.load("patches16", count=8, scale=False)["image"]
  assert patches.dtype == np.uint8
  np.testing.assert_array_equal(
    data.scaled(patches), data.load("patches16", count=8)["image"]
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite_are_named_by_their_index(tmp_path, bad):
  image = np.zeros((6, 4, 4, 1), np.float32)
  image[4, 1, 2] = image[3, 0, 0] = bad
  np.savez(tmp_path / "set.npz", image=image)
  with pytest.raises(
    ValueError, match="2 of 6 images .* the first is number 3"
  ):
    data.from_npz(tmp_path / "set.npz")
  stream = [{"image": row} for row in image]
  iterator = data.batches(stream, 2, seed=0, shuffle=False)
  next(iterator)
  with pytest.raises(ValueError, match=r"source\[3\].*NaN or infinity"):
    next(iterator)


# TensorFlow Datasets.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A real data set, `tiny` 1.9.0 and 1.10.0, on disk: pixel value 10 i."""
  tfds = pytest.importorskip("tensorflow_datasets")
  from PIL import Image

  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(8, 8, 1)),
      "label": tfds.features.ClassLabel(num_classes=3),
    }
  )

  def examples(count):
    for i in range(count):
      png = io.BytesIO()
      Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(png, "PNG")
      png.seek(0)
      yield i, {"image": png, "label": i % 3}

  sizes = {"1.9.0": 12, "1.10.0": 20}

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.9.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      del manager  # Nothing is downloaded.
      size = sizes[str(self.version)]
      return {"train": examples(size), "test": examples(5)}

    def _generate_examples(self):
      raise NotImplementedError

  root = tmp_path_factory.mktemp("tfds")
  for version in sizes:
    Tiny.VERSION = tfds.core.Version(version)
    builder = Tiny(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
  return root


def test_tfds_reads_back_what_was_prepared(prepared):
  source = data.load("tfds:tiny", data_dir=prepared)
  assert len(source) == 20  # The higher version, though it sorts lower.
  assert len(data.load("tfds:tiny:1.9.0", data_dir=prepared)) == 12
  assert (
    len(data.from_tfds("tiny", split="train[:50%]", data_dir=prepared)) == 10
  )
  # array_record keeps an order of its own: pixel and label must still agree.
  for example in (source[3], source.__getitems__([3])[0]):
    assert example["image"].shape == (8, 8, 1)
    assert example["image"].dtype == np.float32
    number = np.round((example["image"][0, 0, 0] + 1) * 127.5 / 10)
    assert example["label"] == number % 3
  assert "tensorflow" not in sys.modules


def test_tfds_batches_are_stacked_and_complete(prepared):
  source = data.from_tfds("tiny", data_dir=prepared)
  seen = []
  for batch in data.batches(source, 5, seed=0, num_epochs=1, prefetch=2):
    assert batch["image"].shape == (5, 8, 8, 1)
    assert batch["label"].dtype == np.int32
    seen += np.round((batch["image"][:, 0, 0, 0] + 1) * 12.75).tolist()
  assert sorted(seen) == list(range(20))


def test_tfds_data_dir_comes_from_the_environment(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  assert len(data.from_tfds("tiny", split="test")) == 5


def test_unprepared_tfds_names_the_command(prepared):
  with pytest.raises(FileNotFoundError) as error:
    data.load("tfds:mnist:3.0.1", data_dir=prepared)
  message = str(error.value)
  assert "'mnist:3.0.1'" in message
  assert str(prepared) in message
  assert "tiny/1.10.0" in message  # What there is instead.
  command = next(l for l in message.splitlines() if "python -c" in l)
  program, option, code = shlex.split(command)
  assert (program, option) == ("python", "-c")
  # The line is run as printed, but for the download itself.
  code = code.removesuffix(".download_and_prepare()")
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      f"{code.replace('tfds.builder', 'b = tfds.builder')}"
      "; print(b.data_path, b.info.file_format.value)",
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  path, stored = result.stdout.split()
  assert path == os.path.join(prepared, "mnist", "3.0.1")
  assert stored == "array_record"


def test_tfds_unknown_split_and_feature_list_what_there_is(prepared):
  with pytest.raises(ValueError, match=r"'valid'.*'train', 'test'"):
    data.from_tfds("tiny", split="valid", data_dir=prepared)
  with pytest.raises(ValueError, match="'text'; it has 'image', 'label'"):
    data.from_tfds("tiny", keys={"tokens": "text"}, data_dir=prepared)


def test_tfds_in_a_format_that_needs_tensorflow_says_so(prepared, tmp_path):
  home = tmp_path / "tiny" / "1.9.0"
  home.mkdir(parents=True)
  for name in ("features.json", "dataset_info.json"):
    text = (prepared / "tiny" / "1.9.0" / name).read_text()
    (home / name).write_text(text.replace('"array_record"', '"tfrecord"'))
  with pytest.raises(ValueError, match=r"'tfrecord'.*\n.*download_and_prepare"):
    data.from_tfds("tiny", data_dir=tmp_path)


# The front door.


@pytest.mark.parametrize("name", ["cifar", "npz:", "tfds:", "digits:", ""])
def test_unknown_name_lists_the_names(name):
  with pytest.raises(ValueError, match=r"'digits', 'patches8'.*'tfds:"):
    data.load(name)


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("sklearn", "digits"),
    ("PIL", "patches16"),
    ("sklearn", "patches32"),
    ("tensorflow_datasets", "tfds:mnist"),
  ],
)
def test_missing_package_names_the_pip_command(module, name, monkeypatch):
  # None in sys.modules makes an import fail as if it were not installed.
  for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
    monkeypatch.setitem(sys.modules, loaded, None)
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=r'pip install "jaxdiff\[data\]"'):
    data.load(name)


# the first batch


def pictures(*shape, low=-1.0, high=1.0):
  draw = np.random.default_rng(0).uniform(low, high, shape)
  return draw.astype(np.float32)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (pictures(4, 3, 16, 16), r"channels come last here, np.transpose"),
    (pictures(4, 8, 8, 3, low=0, high=255), r"image / 127.5 - 1"),
    (pictures(4, 8, 8, 3, low=0), r"2 \* image - 1, or set sigma_data = 0.29"),
    (pictures(4, 8, 8, low=0, high=255).astype(np.int64), "of dtype int64"),
  ],
)
def test_data_in_other_units_are_seen_in_the_first_batch(image, message):
  for batch in (image, {"image": image, "label": np.zeros(4)}):
    with pytest.warns(UserWarning, match=message):
      data.look(batch)


def test_data_as_they_should_be_pass():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for image in (
      pictures(4, 8, 8, 3),
      pictures(4, 3, 3, 3),
      pictures(9, 2, low=0, high=100),  # no images
      np.zeros((4, 8, 8, 1), np.float32),
      pictures(4, 8, 8, 3, low=0, high=255).astype(np.uint8),
    ):
      data.look({"image": image})
    data.look({"x0": pictures(4, 3, 16, 16)})
    jax.jit(lambda v: data.look(v) or v)(pictures(4, 3, 16, 16))
