r"""U-Net for 16x16 colour patches of scikit-learn's two photographs.

  python -m experiments.train --config=experiments/configs/patches16.py \
      --workdir=/tmp/patches16

Cost: three to four minutes on two CPU cores. Expect: a loss near 0.185.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = config_dict.ConfigDict()
  config.dataset = "patches16"
  config.dataset_options = config_dict.ConfigDict()  # of data.load
  config.num_classes = 2  # which photograph
  config.seed = 0

  config.network = "unet"
  config.network_options = dict(
    channels=32, multipliers=(1, 2), blocks=1, attention=(4,), patch=2
  )
  config.process = "edm"
  config.process_options = dict(sigma_min=0.002, sigma_max=80.0)
  config.prediction = "edm"
  config.sigma_data = 0.65  # of the patches in [-1, 1]

  config.times = ("log_normal", -1.2, 1.2)  # a name in losses.times, arguments
  config.weighting = "edm"
  config.label_dropout = 0.1

  config.steps = 3000
  config.batch_size = 64
  config.learning_rate = 1e-3
  config.warmup_steps = 100
  config.ema = 0.999
  config.clip_norm = 1.0

  config.checkpoint_every = 500
  config.keep = 2
  config.log_every = 50
  return config
