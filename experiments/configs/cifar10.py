r"""DDPM++ of 14 million parameters for CIFAR-10, for one accelerator.

  python -m experiments.train --config=experiments/configs/cifar10.py \
      --workdir=runs/cifar10

CIFAR-10 is read from TensorFlow Datasets, which says how to prepare it; any
.npz with `image` u8 and `label` does as well, --config.dataset=npz:FILE.

EDM's recipe (Karras et al. 2022, appendix F) at a quarter of its parameters:
class-conditional, geometric augmentation that the network is told of, dropout,
bfloat16 with float32 parameters. Not for a CPU: an update takes minutes there.
"""

from ml_collections import config_dict

from jaxdiff.experiments.configs import base


def get_config() -> config_dict.ConfigDict:
  """Returns the configuration."""
  config = base.get_config()
  config.dataset = "cifar10"
  config.dataset_options = dict(scale=False)  # bytes until a batch is made
  config.num_classes = 10
  config.network = "ddpmpp"
  config.network_options = dict(channels=64, dropout=0.13, dtype="bfloat16")
  config.sigma_data = 0.5
  config.augment = "Geometric"

  config.steps = 40_000
  config.batch_size = 512
  config.warmup_steps = 2000
  config.schedule = "constant"
  config.averages = (0.05, 0.1)
  config.snapshot_every = 2500
  config.checkpoint_every = 2500
  config.log_every = 100
  return config
