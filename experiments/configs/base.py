"""What every configuration of experiments/train.py has, and what it means."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """Returns a configuration with a data set and a network left to choose."""
  config = config_dict.ConfigDict()
  config.dataset = ""  # as data.load takes it
  config.dataset_options = config_dict.ConfigDict()  # of data.load
  config.num_classes = 0
  config.seed = 0

  config.network = "unet"
  config.network_options = dict()
  config.process = "edm"
  config.process_options = dict(sigma_min=0.002, sigma_max=80.0)
  config.prediction = "edm"
  config.sigma_data = 0.5  # standard deviation of the data
  config.data_width = 0.0  # along their widest direction; 0 measures it

  config.times = ("log_normal", -1.2, 1.2)  # a name in losses.times, arguments
  config.weighting = "edm"
  config.learned_weighting = False  # EDM2's, of every noise level
  config.label_dropout = 0.1
  config.augment = ""  # a class of losses.augment: "Mirror", "Geometric"
  config.augment_options = config_dict.ConfigDict()

  config.steps = 3000
  config.batch_size = 64  # of all devices and hosts together
  config.accumulate = 1  # parts of a batch, one after the other
  config.optimizer = "adam"  # a function of optax
  config.optimizer_options = config_dict.ConfigDict()
  config.learning_rate = 1e-3  # the highest
  config.schedule = "cosine"  # to 0; or "constant", "inverse_sqrt"
  config.warmup_steps = 100
  config.constant_steps = 1000  # of inverse_sqrt, before it falls
  config.ema = 0.999
  config.averages = ()  # widths of power-function averages: (0.05, 0.1)
  config.snapshot_every = 500  # updates between snapshots of those
  config.clip_norm = 1.0

  config.devices = 0  # how many; 0 takes all
  config.params = "replicated"  # on every device, or "sharded" over them
  config.workers = 0  # processes that read and decode
  config.prefetch = 2  # batches that lie ready on the device

  config.checkpoint_every = 500
  config.keep = 2
  config.log_every = 50
  config.tensorboard = True
  config.trace = ()  # first and last update that the profiler records
  return config
