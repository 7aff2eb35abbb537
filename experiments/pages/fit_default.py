r"""How the numbers of `jaxdiff.default` were found: a search on a set apart.

  python -m experiments.pages.fit_default --minutes=10

The set: twelve distributions of `oracles.random_mixture`, seeds 0 to 11, each
under one of three processes, and five small networks that are trained here
(a few minutes each; 8x8 digits and colour patches, predicting eps, v, flow and
EDM's F). Nothing of it is in `experiments.pages.held_out`, which reports. The
score of a setting: the mean over models and calls of the logarithm of its rmse
over that of the best of 24 published tables, with what is above 2 (networks:
1.5) counted more. From the rule as it is, numbers are changed at random, and a
change that lowers the score is kept. It prints each that is kept; a person
rounds the last, tries seeds 100 to 117, and writes the numbers into
jaxdiff/solvers/default.py. The tables of `choosing.candidates` were taken from
the same set, one after the other, each the one that lowers the mean most.
"""

import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import models
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import inner_steps

from .. import train
from ..configs import digits
from ..configs import digits_mlp
from ..configs import patches8
from ..parts import console
from . import held_out

CALLS = (4, 6, 8, 10, 16, 24)
SEEDS = range(12)
PROCESSES = ("edm", "vp_linear", "rectified_flow")
SOLVERS = (
  "ipndm(order=2)",
  "ipndm(order=3)",
  "unipc(order=2)",
  "unipc(order=3)",
  "dpmpp_2m",
  "dpmpp_3m",
  "deis(order=3)",
  "deis(order=2)",
)
GRIDS = ("vp_quadratic", "karras", "log_snr")
_EVEN = dict(times=("uniform",), process_options={})
NETWORKS = {
  "mlp_eps": (
    digits_mlp,
    dict(
      _EVEN, process="vp_linear", prediction="eps", weighting="eps", seed=11
    ),
  ),
  "unet_edm": (digits, dict(seed=12, steps=1500)),
  "patches8": (patches8, dict(seed=13, steps=3000)),
  "patches8_flow": (
    patches8,
    dict(
      _EVEN,
      process="rectified_flow",
      prediction="flow",
      weighting="output",
      seed=14,
      steps=3000,
    ),
  ),
  "unet_v": (
    digits,
    dict(
      _EVEN,
      process="vp_cosine",
      prediction="v",
      weighting="output",
      seed=15,
      steps=1500,
    ),
  ),
}


class Setting(NamedTuple):
  """The numbers of the rule; scale and deviation are in units of the width."""

  scale: float = 0.8
  deviation: float = 0.9
  slope: float = 0.15
  bend: float = 0.8
  floor: float = 0.16
  high: float = 0.25
  corrector: int = 7
  third: int = 18


def rule(
  setting: Setting, process: GaussianProcess, calls: int, width: float
) -> tables.Tableau:
  """Returns the table of the rule with other numbers."""
  grid = grids.angular(
    process,
    calls,
    scale=setting.scale * width,
    bend=setting.bend,
    floor=setting.floor / calls,
    high=setting.high,
  )
  steps = max(1, inner_steps(process, grid))
  return solvers.balanced_adams(
    process,
    grid,
    order=min(3 if calls >= setting.third else 2, steps),
    corrector=calls >= setting.corrector,
    data_std=setting.deviation * width,
    slope=setting.slope,
  )


class Case:
  """A model with its noises, where they lead, and the best published errors."""

  def __init__(self, model, process, shape, width, dtype):
    self.model, self.process, self.width = model, process, width
    key = jax.random.key(5)
    self.x = process.prior(key, (64, *shape), dtype=dtype)
    self.exact = dtype == jnp.float64
    if self.exact:
      fine = solvers.rk4(process, grids.karras(process, 250))
    else:
      grid = grids.vp_quadratic(process, 199)
      fine = solvers.unipc(process, grid, order=3)
    self.end = self.run(fine, fine.nfe)
    build = lambda spec, grid, n: solvers.from_spec(spec)(
      process, grids.GRIDS[grid](process, n)
    )
    self.best = {
      n: min(self.error(build(s, g, n)) for s in SOLVERS for g in GRIDS)
      for n in CALLS
    }

  def run(self, table, rows=32):
    """Returns where a table leads."""
    padded = tables.pad(table, rows, 6)
    key = jax.random.key(0)
    out = sampling.sample(key, self.model, padded, self.x, length=table.nfe)
    return np.asarray(out, np.float64)

  def error(self, table):
    """Returns the rmse of a table."""
    return float(np.sqrt(np.mean((self.run(table) - self.end) ** 2)))


def law(seed: int) -> Case:
  """Returns a random mixture as a case."""
  process = getattr(processes, PROCESSES[seed % 3])()
  it = oracles.random_mixture(seed)
  model = oracles.exact(it, process)
  shape = it.means.shape[1:]
  return Case(model, process, shape, held_out.width_of(it), jnp.float64)


def network(name: str, folder: pathlib.Path) -> Case:
  """Returns a network as a case; it is trained where it is not there."""
  module, changes = NETWORKS[name]
  config = module.get_config()
  with config.ignore_type():
    for entry, value in changes.items():
      setattr(config, entry, value)
  train.train(config, folder)
  model = training.load_denoiser(folder)
  stored = models.load_config(models.checkpoint_directory(folder))
  label = jnp.arange(64) % stored.num_classes
  model = denoisers.with_label(model, label)
  width = stored.data_width
  return Case(model, model.process, stored.shape, width, jnp.float32)


def score(cases: dict[str, Case], setting: Setting) -> tuple[float, str]:
  """Returns the score of a setting, and its parts as text."""
  total, told = 0.0, []
  for kind, weight, most in (("law", 1.0, 2.0), ("network", 1.2, 1.5)):
    found = [
      np.log(case.error(rule(setting, case.process, n, case.width)))
      - np.log(case.best[n])
      for name, case in cases.items()
      if name.startswith("law") == (kind == "law")
      for n in CALLS
    ]
    kept = np.minimum(found, np.log(8.0))  # a rare sample in another mode
    above = np.maximum(kept - np.log(most), 0.0)
    total += weight * kept.mean() + 4.0 * np.mean(above**2)
    told.append(
      f"{kind} {np.exp(np.mean(found)):.3f} (worst {np.exp(max(found)):.2f})"
    )
  return total, ", ".join(told)


def change(rng: np.random.Generator, setting: Setting) -> Setting:
  """Returns a setting with one to three other numbers."""
  names = rng.choice(Setting._fields, size=rng.integers(1, 4), replace=False)
  new: dict[str, Any] = {}
  for name in names:
    value = getattr(setting, name)
    if name == "corrector":
      new[name] = int(rng.integers(4, 10))
    elif name == "third":
      new[name] = int(rng.choice([8, 10, 12, 16, 18, 22, 100]))
    else:
      new[name] = float(value * np.exp(0.25 * rng.standard_normal()))
  new["slope"] = min(new.get("slope", setting.slope), 1.0)
  return setting._replace(**new)


def main() -> None:
  jax.config.update("jax_enable_x64", True)
  folder = pathlib.Path("runs/fit_default")
  cases = {f"law{seed}": law(seed) for seed in SEEDS}
  cases |= {name: network(name, folder / name) for name in NETWORKS}
  rng = np.random.default_rng(flags.FLAGS.seed)
  best = Setting()
  lowest, told = score(cases, best)
  print(f"{lowest:.3f} {best} {told}", flush=True)
  end = time.monotonic() + 60 * flags.FLAGS.minutes
  while time.monotonic() < end:
    tried = change(rng, best)
    value, told = score(cases, tried)
    if value < lowest:
      lowest, best = value, tried
      print(f"{lowest:.3f} {best} {told}", flush=True)


if __name__ == "__main__":
  flags.DEFINE_float("minutes", 10.0, "Time of the search.", lower_bound=0.0)
  console.define_seed("Seed of the search.")
  console.run(main)
