r"""Calibration sets: network inputs from which layer ranges are found.

Activations drift with the noise level, so the set must mix times, and states of
the denoising process calibrate better than images do. "ndtc" (normally
distributed time-step calibration) draws for each of N samples the place

  u = clip(Normal(mean, std), 0, 1),   0 the data end, 1 the noise end,

skewed towards the data, walks the full-precision sampler from noise, and keeps
the state that the network was asked at there, with its own time. All N walk in
one run of the table: N samples cost one sampling of N. Reference: Shang et al.
(2023), "Post-training Quantization on Diffusion Models",
https://arxiv.org/abs/2211.15736, section 3.3.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import Model

MODES = ("ndtc", "uniform", "single", "forward", "raw")


class CalibrationSet(NamedTuple):
  """Inputs of a model.

  Attributes:
    x: f[n, ...].
    t: f32[n], the time of each.
  """

  x: jax.Array
  t: jax.Array


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How a calibration set is drawn.

  Attributes:
    n: number of samples.
    mode: "ndtc" and "uniform" draw the place of every sample along the run;
      "single" takes all at the place `mean`; "forward" noises data to the times
      of "ndtc"; "raw" shows clean data at those times, as a classifier would be
      calibrated.
    mean: mean of the place, 0 the data end, 1 the noise end of the run.
    std: standard deviation of the place.
  """

  n: int = 1024
  mode: str = "ndtc"
  mean: float = 0.4
  std: float = 0.4

  def __post_init__(self):
    checks.one_of(self.mode, MODES, "mode")
    if self.n < 1:
      raise ValueError(f"an empty calibration set, n={self.n}; 1024 is usual")


@checks.door
def calibration_set(
  key: jax.Array,
  model: Model,
  tableau: Tableau,
  process: GaussianProcess,
  shape: tuple[int, ...],
  config: Calibration | None = None,
  data: jax.Array | None = None,
) -> CalibrationSet:
  """Returns what the network is calibrated on.

  Args:
    key: PRNG key.
    model: the full-precision model.
    tableau: the sampler that the quantized model will serve.
    process: the forward process.
    shape: shape of one sample.
    config: how to draw; `Calibration()` by default.
    data: f[m, *shape], for the modes "forward" and "raw" alone.

  Raises:
    ValueError: if data are missing, or not of the shape, or model, table and
      process are not of one process.
  """
  agreement.check(model, tableau, process, "calibration_set")
  config = Calibration() if config is None else config
  place_key, run_key, noise_key = jax.random.split(key, 3)
  rows = place_rows(place_key, tableau.nfe, config)
  times = jnp.asarray(tableau.t, jnp.float32)[rows]
  if config.mode in ("forward", "raw"):
    if data is None or jnp.shape(data)[1:] != tuple(shape):
      got = "none" if data is None else f"shape {jnp.shape(data)}"
      raise ValueError(
        f"mode={config.mode!r} shows the network data f[m, *{tuple(shape)}];"
        f" got {got}"
      )
    x0 = jnp.asarray(data)[jnp.arange(config.n) % len(data)]
    if config.mode == "raw":
      return CalibrationSet(x0, times)
    return CalibrationSet(process.perturb(noise_key, x0, times)[0], times)
  start = process.prior(
    noise_key, (config.n, *shape), float(np.asarray(tableau.t)[0])
  )
  _, x = sampling.sample(run_key, model, tableau, start, collect=at_rows(rows))
  return CalibrationSet(x, times)


def place_rows(key: jax.Array, n: int, config: Calibration) -> np.ndarray:
  """Returns the row of the table at which each sample is kept, i32[config.n].

  Row 0 is the noise end, u = 1; row n - 1 the data end, u = 0.
  """
  if config.mode == "single":
    u = np.full(config.n, config.mean)
  elif config.mode == "uniform":
    u = np.asarray(jax.random.uniform(key, (config.n,)))
  else:
    draws = np.asarray(jax.random.normal(key, (config.n,)))
    u = config.mean + config.std * draws
  return np.rint((1.0 - np.clip(u, 0.0, 1.0)) * (n - 1)).astype(np.int32)


def at_rows(rows: np.ndarray) -> sampling.Collector:
  """Returns the collector of each sample's state at its own row, like x.

  The rows are an argument of the compiled program, so that those of other draws
  share it.
  """
  update = jax.tree_util.Partial(_update_rows, jnp.asarray(rows))
  return sampling.Collector(_init_rows, update)


def _init_rows(n, info):
  del n
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), info.y)


def _update_rows(rows, kept, info):
  here = rows == info.step
  pick = lambda old, new: jnp.where(tree.expand(here, new), new, old)
  return jax.tree.map(pick, kept, info.y)
