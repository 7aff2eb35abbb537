r"""Class-conditional U-Net for scikit-learn's 8x8 digits, EDM's recipe.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=/tmp/digits

Cost: about 80 seconds on two CPU cores. Expect: a loss near 0.32, and samples
of which a nearest-neighbour classifier finds more than 0.9 in their class.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = config_dict.ConfigDict()
  config.dataset = "digits"
  config.dataset_options = config_dict.ConfigDict()  # of data.load
  config.num_classes = 10
  config.seed = 0

  config.network = "unet"
  config.network_options = dict(
    channels=48, multipliers=(1,), blocks=1, attention=(4,), patch=2
  )
  config.process = "edm"
  config.process_options = dict(sigma_min=0.002, sigma_max=80.0)
  config.prediction = "edm"
  config.sigma_data = 0.75  # of the digits in [-1, 1]

  config.times = ("log_normal", -1.2, 1.2)  # a name in losses.times, arguments
  config.weighting = "edm"
  config.label_dropout = 0.1

  config.steps = 3000
  config.batch_size = 128
  config.learning_rate = 2e-3
  config.warmup_steps = 100
  config.ema = 0.995
  config.clip_norm = 1.0

  config.checkpoint_every = 500
  config.keep = 2
  config.log_every = 50
  return config
