r"""U-Net for a folder of your own pictures.

  python -m experiments.train --config=experiments/configs/folder.py \
      --config.dataset=folder:/path/pictures --workdir=runs/mine

PNG, JPEG and WebP files, in sub-folders too: the largest central square of each
is resized to config.dataset_options.size, a multiple of 4. What to set:

  --config.dataset_options.size=64         the side, in pixels
  --config.dataset_options.channels=1      for grey pictures
  --config.dataset_options.skip_bad=True   to leave out broken files
  --config.num_classes=5      if the sub-folders are 5 classes; without, they
                              are ignored

and the rest as experiments/configs/npz.py says. Pictures are decoded again in
every epoch, ahead of their use. Where one process cannot keep up, take more, or
write pictures that fit in memory to an .npz once:

  --config.workers=8
  python -m experiments.prepare_data --source=folder:/path --size=32 \
      --out=mine.npz
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import npz


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration: that of npz, with a folder's options."""
  config = npz.get_config()
  config.dataset = "folder:pictures"
  config.dataset_options = config_dict.ConfigDict(
    dict(size=32, channels=3, skip_bad=False)
  )
  return config
