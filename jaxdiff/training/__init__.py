"""Training: state, update, loop, and models read back from checkpoints."""

from jaxdiff.training import alternating
from jaxdiff.training import ema
from jaxdiff.training.alternating import Player
from jaxdiff.training.averaging import average
from jaxdiff.training.density import maximum_likelihood
from jaxdiff.training.digits import digits_denoiser
from jaxdiff.training.labels import check_labels
from jaxdiff.training.loop import Guard
from jaxdiff.training.loop import Trace
from jaxdiff.training.loop import train
from jaxdiff.training.models import check_config
from jaxdiff.training.models import checkpoint_directory
from jaxdiff.training.models import fingerprint
from jaxdiff.training.models import load_config
from jaxdiff.training.models import load_denoiser
from jaxdiff.training.models import make_denoiser
from jaxdiff.training.models import ModelConfig
from jaxdiff.training.models import save_config
from jaxdiff.training.snapshots import open_snapshots
from jaxdiff.training.snapshots import reconstruct
from jaxdiff.training.state import finished
from jaxdiff.training.state import init_state
from jaxdiff.training.state import TrainState
from jaxdiff.training.update import Loss
from jaxdiff.training.update import make_update
from jaxdiff.training.update import projection
from jaxdiff.training.writers import csv_writer
from jaxdiff.training.writers import tensorboard_writer
from jaxdiff.training.writers import together

__all__ = [
  "Guard",
  "Loss",
  "ModelConfig",
  "Player",
  "Trace",
  "TrainState",
  "alternating",
  "average",
  "check_config",
  "check_labels",
  "checkpoint_directory",
  "csv_writer",
  "digits_denoiser",
  "ema",
  "fingerprint",
  "finished",
  "init_state",
  "load_config",
  "load_denoiser",
  "make_denoiser",
  "make_update",
  "maximum_likelihood",
  "open_snapshots",
  "projection",
  "reconstruct",
  "save_config",
  "tensorboard_writer",
  "together",
  "train",
]
