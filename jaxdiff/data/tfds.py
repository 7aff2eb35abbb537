"""TensorFlow Datasets without TensorFlow, read at random positions.

Only data that was prepared as array_record or parquet can be read so; where it
is missing or was prepared otherwise, the error holds the command that prepares
it. That is a line of Python and not `tfds build`, which needs TensorFlow.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff.data import arrays
from jaxdiff.data import optional

_READABLE = ("array_record", "parquet", "arrow")


@dataclasses.dataclass(frozen=True)
class Examples:
  """A prepared split: `examples[i]` is a dict of arrays, read on demand.

  Attributes:
    records: the random-access source of TensorFlow Datasets.
    keys: names in the result to names of features.
    pixels: whether u8 images stay what they are.
    resize: applied to stored images, u8[h, w, c] -> u8[h', w', c], or None.
  """

  records: Any
  keys: Mapping[str, str]
  pixels: bool = False
  resize: Callable[[np.ndarray], np.ndarray] | None = None

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._fields(self.records[index])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
    # One call for a batch: the records are fetched together.
    return [self._fields(r) for r in self.records.__getitems__(list(indices))]

  def _fields(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    fields = {name: record[feature] for name, feature in self.keys.items()}
    if self.resize is not None:
      fields["image"] = self.resize(fields["image"])
    return {
      name: arrays.standard(name, value, rank=3, pixels=self.pixels)
      for name, value in fields.items()
    }


@checks.door
def from_tfds(
  name: str,
  *,
  split: str = "train",
  data_dir: str | os.PathLike[str] | None = None,
  keys: Mapping[str, str] | None = None,
  scale: bool = True,
  resize: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Examples:
  """Opens a prepared data set of TensorFlow Datasets; downloads nothing.

  Args:
    name: as in TensorFlow Datasets: `"mnist"`, `"mnist:3.0.1"`,
      `"ag_news_subset/config:1.0.0"`. Without a version, the highest one that
      is prepared.
    split: a split or a slice of one, `"train[:90%]"`.
    data_dir: where data sets lie; by default the environment variable
      TFDS_DATA_DIR, else ~/tensorflow_datasets.
    keys: names in the result to names of features; by default `image` and
      `label` under their own names, where a set without labels is taken as it
      is.
    scale: False leaves u8 images as they are, for `scaled`.
    resize: applied to every stored image, u8[h, w, c] -> u8[h', w', c].

  Returns:
    A source for `batches`: examples with u8 images as f32[h, w, c] in
    [-1, 1] and labels as i32.

  Raises:
    ImportError: tensorflow-datasets is not installed.
    FileNotFoundError: the data set is not prepared there.
    ValueError: it was prepared in a format that needs TensorFlow, or has no
      such split or feature.
  """
  tfds = optional.require("tensorflow_datasets", f"The data set {name!r}")
  root = pathlib.Path(
    data_dir
    or os.environ.get("TFDS_DATA_DIR")
    or os.path.join("~", "tensorflow_datasets")
  ).expanduser()
  builder = tfds.builder_from_directory(_directory(name, root))
  stored = builder.info.file_format.value
  if stored not in _READABLE:
    raise ValueError(
      f"name: {name!r} lies in {str(builder.data_path)!r} in the format "
      f"{stored!r}, which only TensorFlow reads. Prepare it as array_record, "
      f"in another data_dir or after removing that folder:\n"
      f"  {prepare_command(name, root)}"
    )
  if re.split(r"[\[+]", split)[0].strip() not in {*builder.info.splits, "all"}:
    raise ValueError(
      f"split: got {split!r}, but {name!r} has "
      f"{', '.join(map(repr, builder.info.splits))}."
    )
  features = sorted(builder.info.features)
  if keys is None:
    keys = dict(arrays.IMAGE_AND_LABEL)
    if "label" not in features:
      del keys["label"]
  missing = sorted(set(keys.values()) - set(features))
  if missing:
    raise ValueError(
      f"keys: {name!r} has no feature {', '.join(map(repr, missing))}; it has "
      f"{', '.join(map(repr, features))}. Name what to read, for instance "
      f"keys={{'image': '<feature>'}}."
    )
  records = builder.as_data_source(split=split)
  return Examples(records, dict(keys), pixels=not scale, resize=resize)


def prepare_command(name: str, data_dir: str | os.PathLike[str]) -> str:
  """Returns the shell command that prepares `name` under `data_dir`."""
  line = (
    "import tensorflow_datasets as tfds; "
    f"tfds.builder({name!r}, data_dir={os.fspath(data_dir)!r}, "
    "file_format='array_record').download_and_prepare()"
  )
  return f'python -c "{line}"'


def _directory(name: str, root: pathlib.Path) -> pathlib.Path:
  """Finds name/[config/]version below `root`."""
  path, _, version = name.partition(":")
  home = root / path
  found = sorted(
    # What is still being written has no such file at its final place.
    (p.parent for p in home.glob("*/dataset_info.json")),
    key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)],
  )
  if version:
    found = [p for p in found if p.name == version]
  if found:
    return found[-1]
  near = sorted(
    str(p.parent.relative_to(root)) for p in root.glob("*/**/dataset_info.json")
  )
  raise FileNotFoundError(
    f"name: the data set {name!r} is not prepared in {str(root)!r}; looked "
    f"for {str(home / (version or '<version>') / 'dataset_info.json')!r}. "
    f"Prepared there: {', '.join(near[:10]) or 'nothing'}"
    f"{', ...' if len(near) > 10 else ''}. Prepare it where the network is "
    f"reached (some data sets need TensorFlow for this, none for reading):\n"
    f"  {prepare_command(name, root)}\n"
    "or give the data_dir, or the TFDS_DATA_DIR, that holds it."
  )
