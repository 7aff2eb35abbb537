r"""Residual MLP for 8x8 colour patches of photographs: a teacher for students.

  python -m experiments.train --config=experiments/configs/patches8.py \
      --workdir=/tmp/patches8

Cost: about two minutes on one CPU core. Expect: a loss near 0.2.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "patches8"
  config.num_classes = 2  # which photograph
  config.network = "residual_mlp"
  config.network_options = dict(width=256, blocks=4, hidden=2, embedding=128)
  config.sigma_data = 0.65  # of the patches in [-1, 1]
  config.times = ("log_normal", -0.4, 1.8)
  config.steps = 8000
  config.batch_size = 256
  config.ema = 0.998
  return config
