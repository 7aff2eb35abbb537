r"""Residual MLP for scikit-learn's 8x8 digits: a teacher for distillation.

  python -m experiments.train --config=experiments/configs/digits_mlp.py \
      --workdir=/tmp/digits_mlp

Cost: 40 seconds on one CPU core. Expect: a loss near 0.29.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "digits"
  config.num_classes = 10
  config.network = "digits_mlp"
  config.network_options = dict(width=256, blocks=3, hidden=2, embedding=128)
  config.sigma_data = 0.75  # of the digits in [-1, 1]
  config.steps = 3000
  config.batch_size = 256
  config.ema = 0.998
  return config
