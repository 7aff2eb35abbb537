"""Post-training quantization with calibration on the sampler's own path.

The shared digits network (residual MLP 3 x 256, EDM), Euler in the noise level
with 40 steps, 1024 samples from the same noise: the rmse to the float network's
samples and the Frechet distance of random features to the data. Kernels per
channel, activations per tensor, p = 2.4 and 50 thresholds, first and last
layers 8 bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import metrics
from jaxdiff import quantization
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.quantization import quantizer

from . import _digits
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "PTQ4DM"
CLAIM = (
  "8-bit weights and activations without training keep quality if the"
  " calibration set mixes the denoising process's time steps"
)
PAPER = "https://arxiv.org/abs/2211.15736"
SEEDS = (0, 1, 2)
BITS = (8, 6, 5)
BARS = (
  at_most("w8a8_frechet", 1.03, "W8A8, NDTC: Frechet / the float network's"),
  at_most("w8a8_rmse", 0.01, "W8A8, NDTC: rmse to the float samples"),
  at_most("single", 0.95, "NDTC rmse / best single time, worst of 8, 6, 5 bit"),
  at_most("data_end", 0.9, "NDTC rmse / data-end time, worst of 8, 6, 5 bit"),
  at_least("raw", 5.0, "clean images as calibration: rmse / NDTC's, W8A8"),
  at_least("drift", 1.3, "max |activation|, deepest layers, noise / data end"),
  at_least("rounding", 0.3, "W4: fall of layer output MSE, learned rounding"),
)
REPORTED = (
  *(reported(f"rmse_{b}", f"W{b}A{b}, NDTC: rmse") for b in BITS),
  *(reported(f"uniform_{b}", f"W{b}A{b}: NDTC / uniform (tie)") for b in BITS),
  reported("forward", "W8A8: noised images / NDTC, rmse"),
  reported("w4a8_rmse", "W4A8, NDTC: rmse"),
  reported("w4a8_learned", "W4A8, NDTC, learned rounding: rmse"),
  reported("integer", "W8A8: rmse of integer to float arithmetic, samples"),
  reported("size", "bytes of the parameters, W8 / float32"),
  reported("frechet_float", "Frechet distance of the float network"),
  reported("frechet_raw", "Frechet distance, clean images as calibration"),
)
LIMITS = (
  "ImageNet; a raw noise predictor without input scaling, where the drift is"
  " larger; faster int8 kernels, which a CPU does not have."
)

_N = 1024
_SETS = {  # of calibration: their law of times, its mean and deviation
  "noise": ("single", 1.0),
  "middle": ("single", 0.5),
  "data": ("single", 0.0),
  "uniform": ("uniform",),
  "ndtc_40": ("ndtc", 0.4, 0.4),
  "ndtc_25": ("ndtc", 0.25, 0.25),
}


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one seed."""
  model = _digits.denoiser(seed)
  process = model.process
  table = solvers.euler(process, grids.karras(process, 40))
  images = jnp.asarray(_digits.images())
  noise = process.prior(jax.random.key(seed + 10), (_N, *_digits.SHAPE))
  run = lambda m: sampling.sample(jax.random.key(0), m, table, noise)
  exact = run(model)
  rmse = lambda m: float(jnp.sqrt(jnp.mean((run(m) - exact) ** 2)))
  frechet = lambda x: float(metrics.random_feature_frechet(x, images))

  def calibrate(mode, mean=0.5, std=0.25):
    config = quantization.Calibration(_N, mode, mean, std)
    return quantization.calibration_set(
      jax.random.key(seed + 20),
      model,
      table,
      process,
      _digits.SHAPE,
      config,
      images,
    )

  sets = {name: calibrate(*law) for name, law in _SETS.items()}
  errors = {bits: _errors(rmse, model, sets, bits) for bits in BITS}
  worst = lambda other: max(e["ndtc"] / other(e) for e in errors.values())
  small = quantization.quantize(model, sets["ndtc_25"], _config())
  integer = dataclasses.replace(
    small, apply=dataclasses.replace(small.apply, arithmetic="integer")
  )
  raw = quantization.quantize(model, calibrate("raw", 0.4, 0.4), _config())
  forward = quantization.quantize(
    model, calibrate("forward", 0.4, 0.4), _config()
  )
  four = [
    rmse(_four_bits(seed, model, sets["ndtc_25"], rounding))
    for rounding in ("nearest", "learned")
  ]
  reference, ours = frechet(exact), frechet(run(small))
  size = quantization.size_in_bytes
  return dict(
    w8a8_frechet=ours / reference,
    w8a8_rmse=errors[8]["ndtc"],
    single=worst(lambda e: min(e["noise"], e["middle"], e["data"])),
    data_end=worst(lambda e: e["data"]),
    raw=rmse(raw) / errors[8]["ndtc"],
    drift=_drift(model, sets),
    rounding=_rounding(seed, model, sets["ndtc_25"]),
    forward=rmse(forward) / errors[8]["ndtc"],
    w4a8_rmse=four[0],
    w4a8_learned=four[1],
    integer=float(jnp.sqrt(jnp.mean((run(small) - run(integer)) ** 2))),
    size=size(small.params) / size(model.params),
    frechet_float=reference,
    frechet_raw=frechet(run(raw)),
    **{f"rmse_{b}": errors[b]["ndtc"] for b in BITS},
    **{f"uniform_{b}": errors[b]["ndtc"] / errors[b]["uniform"] for b in BITS},
  )


def _errors(rmse, model, sets, bits) -> dict[str, float]:
  """Returns the error with each calibration set, and the better NDTC."""
  config = _config(bits, bits)
  found = {
    name: rmse(quantization.quantize(model, inputs, config))
    for name, inputs in sets.items()
  }
  return found | {"ndtc": min(found["ndtc_40"], found["ndtc_25"])}


def _four_bits(seed, model, inputs, rounding):
  """Returns the model whose weights have four bits."""
  config = _config(w_bits=4, rounding=rounding)
  return quantization.quantize(model, inputs, config, key=jax.random.key(seed))


def _config(*bits, **options) -> quantization.Config:
  return quantization.Config(*bits, candidates=50, **options)


def _drift(model, sets) -> float:
  """Returns max |activation| at the noise end over that at the data end.

  Of the two deepest layers on the way of x, the larger ratio.
  """
  largest = {
    name: {
      path: np.abs(values).max()
      for path, values in quantization.layer_inputs(model, sets[name]).items()
    }
    for name in ("noise", "data")
  }
  deepest = [p for p in largest["data"] if "modulate" not in p][-2:]
  return float(max(largest["noise"][p] / largest["data"][p] for p in deepest))


def _rounding(seed, model, inputs) -> float:
  """Returns the fall of a layer's output error at 4 bits, mean of blocks."""
  falls = []
  seen = quantization.layer_inputs(model, inputs)
  for name in ("block0_in", "block1_in", "block2_in"):
    x = jnp.asarray(seen[name])
    w = model.params[name]["kernel"]
    grid = quantizer.search_channels(w, 4)
    learned = quantization.learn_rounding(
      jax.random.key(seed), x[::2], w, grid, steps=500
    )
    error = lambda n, x=x, w=w, grid=grid: float(
      jnp.mean((x[1::2] @ (n * grid.scale - w)) ** 2)
    )
    falls.append(1.0 - error(learned) / error(quantizer.to_integers(w, grid)))
  return float(np.mean(falls))
