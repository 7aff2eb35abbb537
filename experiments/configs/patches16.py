r"""U-Net for 16x16 colour patches of scikit-learn's two photographs.

  python -m experiments.train --config=experiments/configs/patches16.py \
      --workdir=/tmp/patches16

Cost: three to four minutes on two CPU cores. Expect: a loss near 0.185.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "patches16"
  config.num_classes = 2  # which photograph
  config.network_options = dict(
    channels=32, multipliers=(1, 2), blocks=1, attention=(4,), patch=2
  )
  config.sigma_data = 0.65  # of the patches in [-1, 1]
  return config
