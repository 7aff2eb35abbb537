r"""Class-conditional U-Net for scikit-learn's 8x8 digits, EDM's recipe.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=/tmp/digits

Cost: about 80 seconds on two CPU cores. Expect: a loss near 0.32, and samples
of which a nearest-neighbour classifier finds more than 0.9 in their class.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "digits"
  config.num_classes = 10
  config.network_options = dict(
    channels=48, multipliers=(1,), blocks=1, attention=(4,), patch=2
  )
  config.sigma_data = 0.75  # of the digits in [-1, 1]

  config.batch_size = 128
  config.learning_rate = 2e-3
  config.ema = 0.995
  return config
