r"""Turns data as it lies about into the .npz files that training reads.

  python -m experiments.prepare_data --cifar10_sheets=DIR --out=cifar10.npz
  python -m experiments.prepare_data --mnist=/path/mnist.npz --out=mnist.npz
  python -m experiments.prepare_data --source=folder:/path --size=32 --out=...

then train with

  python -m experiments.train --config=experiments/configs/npz.py \
      --config.dataset=npz:cifar10.npz --config.num_classes=10 \
      --config.dataset_options="{'scale': False}" --workdir=runs/cifar10

where scale=False keeps pixels as bytes in memory, a quarter of floats.

The file holds image u8[n, height, width, channels] and label i32[n] where there
are classes. --cifar10_sheets is a folder of sprite sheets, train_00.webp, ...
and test_00.webp, ..., of 1,000 images of 32x32 each in 25 rows of 40, and of
labels.npz with y_train and y_test. --mnist is what data.load("mnist", path=...)
reads. --source is any name that data.load knows; it is read into memory.
"""

import os
import pathlib

import numpy as np
from absl import flags

from jaxdiff import data
from jaxdiff.data import optional

from .parts import console

_SHEET = (25, 32, 40, 32, 3)


def cifar10_sheets(folder: str, split: str) -> dict[str, np.ndarray]:
  """Returns the images of all sheets of a split, and their labels.

  Raises:
    FileNotFoundError: if there are no sheets or labels.
    ValueError: if a sheet has another size.
  """
  Image = optional.require("PIL.Image", "--cifar10_sheets")
  home = pathlib.Path(folder).expanduser()
  sheets = sorted(home.glob(f"{split}_*.webp"))
  labels = home / "labels.npz"
  if not sheets or not labels.is_file():
    raise FileNotFoundError(
      f"--cifar10_sheets={folder} holds {len(sheets)} sheets {split}_*.webp and"
      f" {'a' if labels.is_file() else 'no'} labels.npz; both are needed"
    )
  stacks = []
  for path in sheets:
    sheet = np.asarray(Image.open(path).convert("RGB"))
    if sheet.size != np.prod(_SHEET):
      raise ValueError(
        f"{path} is {sheet.shape[1]}x{sheet.shape[0]}, but a sheet of 1,000"
        " images is 1280x800"
      )
    stacks.append(sheet.reshape(_SHEET).swapaxes(1, 2).reshape(-1, 32, 32, 3))
  image = np.concatenate(stacks)
  with np.load(labels) as stored:
    label = stored[f"y_{split}"][: len(image)].astype(np.int32)
  return {"image": image, "label": label}


def read() -> dict[str, np.ndarray]:
  """Returns the arrays that the flags ask for.

  Raises:
    ValueError: if not exactly one source is named, or it holds floats.
  """
  flag = flags.FLAGS
  given = [
    name
    for name in ("cifar10_sheets", "mnist", "source")
    if flag[name].value is not None
  ]
  if len(given) != 1:
    raise ValueError(
      "name one of --cifar10_sheets, --mnist and --source; got"
      f" {' and '.join('--' + name for name in given) or 'none'}"
    )
  if flag.cifar10_sheets is not None:
    return cifar10_sheets(flag.cifar10_sheets, flag.split)
  if flag.mnist is not None:
    return data.load("mnist", path=flag.mnist, split=flag.split, scale=False)
  options = {"scale": False}
  if flag.size is not None:
    options["size"] = flag.size
  if flag["split"].present:
    options["split"] = flag.split
  return data.in_memory(data.load(flag.source, **options))


def main() -> None:
  fields = read()
  out = pathlib.Path(flags.FLAGS.out).expanduser()
  out.parent.mkdir(parents=True, exist_ok=True)
  partial = out.with_name(out.name + ".partial")
  with partial.open("wb") as f:
    np.savez(f, **fields)
  os.replace(partial, out)
  shapes = ", ".join(
    f"{name} {value.dtype}{list(value.shape)}" for name, value in fields.items()
  )
  print(f"Wrote {out}: {shapes}.")


if __name__ == "__main__":
  flags.DEFINE_string("cifar10_sheets", None, "Folder of sprite sheets.")
  flags.DEFINE_string("mnist", None, "mnist.npz, or the folder of idx files.")
  flags.DEFINE_string("source", None, "A name that data.load knows.")
  flags.DEFINE_integer("size", None, "Side of the pictures of a folder.")
  flags.DEFINE_string("split", "train", "Which part of the data.")
  flags.DEFINE_string("out", None, "The .npz file to write.")
  flags.mark_flag_as_required("out")
  console.run(main)
