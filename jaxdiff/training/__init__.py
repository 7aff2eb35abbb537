"""Training: state, update, loop, and denoisers read back from checkpoints."""

from jaxdiff.training import alternating
from jaxdiff.training import ema
from jaxdiff.training.alternating import Player
from jaxdiff.training.averaging import average
from jaxdiff.training.labels import check_labels
from jaxdiff.training.loading import fingerprint
from jaxdiff.training.loading import load_denoiser
from jaxdiff.training.loop import Guard
from jaxdiff.training.loop import Trace
from jaxdiff.training.loop import train
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
  "Player",
  "Trace",
  "TrainState",
  "alternating",
  "average",
  "check_labels",
  "csv_writer",
  "ema",
  "fingerprint",
  "finished",
  "init_state",
  "load_denoiser",
  "make_update",
  "open_snapshots",
  "projection",
  "reconstruct",
  "tensorboard_writer",
  "together",
  "train",
]
