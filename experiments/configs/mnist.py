r"""Class-conditional U-Net for MNIST, small enough for two CPU cores.

  python -m experiments.train --config=experiments/configs/mnist.py \
      --workdir=runs/mnist

MNIST is read from TensorFlow Datasets, which says how to prepare it, or from
Keras's mnist.npz: --config.dataset_options="{'path': 'mnist.npz'}"

Cost: about 20 minutes of one CPU core, 12 of two. docs/results.md says what to
expect.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "mnist"
  config.num_classes = 10
  config.network_options = dict(
    channels=32, multipliers=(1, 2), blocks=1, attention=(7,), patch=2
  )
  config.sigma_data = 0.615  # of the pixels in [-1, 1]
  config.steps = 7000
  return config
