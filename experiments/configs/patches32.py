r"""U-Net for 32x32 colour patches of scikit-learn's two photographs.

  python -m experiments.train --config=experiments/configs/patches32.py \
      --workdir=runs/patches32

Cost: about 20 minutes of one CPU core, 12 of two. docs/results.md says what to
expect.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import patches16


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration: that of 16x16 with one level more."""
  config = patches16.get_config()
  config.dataset = "patches32"
  config.network_options.multipliers = (1, 2, 2)
  config.network_options.attention = (8, 4)
  config.steps = 6000
  return config
