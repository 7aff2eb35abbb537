r"""U-Net for your own images in an .npz file.

  python -m experiments.train --config=experiments/configs/npz.py \
      --config.dataset=npz:/path/file.npz --workdir=runs/mine

The file, as np.savez(path, image=..., label=...) writes it, holds image
u8[n, height, width(, channels)], or floats in about [-1, 1], and perhaps label
i[n]. Sides must be multiples of 4. What to set:

  --config.num_classes=10     to use the labels 0..9; without, they are ignored
  --config.sigma_data=0.5     known beforehand; else measured and printed
  --config.dataset_options="{'keys': {'image': 'x_train'}}"    other names
  --config.network=residual_mlp --config.network_options="{'width': 256}"
                              for samples that are no images, f[n, d]
  --config.network_options.channels=64 --config.steps=100000
                              for more than a first try

A data set of TensorFlow Datasets that is prepared on this machine trains
likewise, with --config.dataset=tfds:mnist. Cost and loss depend on the data.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import patches16


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration: that of patches16, without classes."""
  config = patches16.get_config()
  config.dataset = "npz:data.npz"
  config.num_classes = 0
  with config.ignore_type():
    config.sigma_data = config_dict.placeholder(float)  # measured
  return config
