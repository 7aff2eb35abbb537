"""AutoDiffusion: searched time steps, and blocks to skip, against uniform DDIM.

Steps: g2 and g16 under the linear VP schedule, T = 1,000 rungs, DDIM. Fitness:
the Frechet distance in 32 random tanh features, 1,000 fixed noises, 500
evaluations. Reported on 8,192 fresh noises by the Frechet distance in other
features and by the sliced Wasserstein distance, which nothing optimized. The
baseline is the better of the strides T / K and of equal distances from 0 to
999, each for its own metric.

Blocks: residual perceptrons of the digits with 8 blocks of width 64 (2,000
updates), under VP, 512 search noises. The budget is that of 4 whole steps; up
to 3 of 8 blocks may be skipped a step, so that up to 6 steps can be paid for.
The second network has another seed and a width of 48.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import tempfile

import jax
import numpy as np
from flax import serialization

from jaxdiff import metrics
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff.search import autodiffusion
from jaxdiff.search import fitness
from jaxdiff.search import populations
from jaxdiff.search import skipping

from . import _digits
from .report import at_most
from .report import reported

TITLE = "AutoDiffusion"
CLAIM = (
  "Uniform time steps are not optimal: a short sequence of steps, and the"
  " blocks to skip at each, found by evolution without training, samples much"
  " better at equal cost."
)
PAPER = "https://arxiv.org/abs/2309.10438"
SEEDS = (0, 1, 2)
_BOUNDS = {4: 0.5, 6: 0.6}
BARS = (
  *(
    at_most(
      f"frechet_d{d}_{k}",
      bound,
      f"{d} dimensions, {k} steps: held-out Frechet distance, searched / best"
      " uniform",
    )
    for d in (2, 16)
    for k, bound in _BOUNDS.items()
  ),
  *(
    at_most(
      f"sliced_d{d}_{k}",
      0.85,
      f"{d} dimensions, {k} steps: sliced Wasserstein distance, searched / best"
      " uniform",
    )
    for d in (2, 16)
    for k in _BOUNDS
  ),
  at_most(
    "joint",
    0.7,
    "digits, cost of 4 whole steps: held-out Frechet distance, steps and blocks"
    " searched / best uniform DDIM of 4 steps",
  ),
  at_most(
    "transfer",
    0.7,
    "the 4 steps found, on a second network: held-out Frechet distance / its"
    " best uniform DDIM of 4 steps",
  ),
)
REPORTED = (
  reported(
    "joint_steps",
    "digits: held-out Frechet distance, steps and blocks / steps alone, at"
    " equal cost (the sheet hopes for 0.95)",
  ),
  reported("steps", "digits, 4 steps: searched / best uniform, held out"),
  reported("uniform", "digits: Frechet distance of the best uniform DDIM"),
  reported("floor", "digits: that of as many data to the data, halves"),
  reported("joint_length", "number of steps of the jointly searched candidate"),
)
LIMITS = (
  "ImageNet and FID; masks save no time in the population, whose cost is"
  " counted in blocks (models pruned by `skipping.without` do)."
)

_RUNGS = 1000
_BLOCKS = 8


def measure(seed: int) -> dict[str, float]:
  """Returns the ratios of one seed."""
  return _mixtures(seed) | _digits_network(seed)


def _mixtures(seed):
  process = processes.vp_linear()
  times = autodiffusion.ladder(process, _RUNGS)
  key = jax.random.key(seed)
  out = {}
  for d, oracle in ((2, oracles.g2()), (16, oracles.g16())):
    model = oracles.exact(oracle, process)
    data = np.asarray(oracle.sample(jax.random.fold_in(key, 1), 20_000)[0])
    task, held = _tasks(key, process, model, (d,), data, 8192)
    judge = autodiffusion.fitness(task, process, times)
    for k in _BOUNDS:
      found = autodiffusion.search_steps(key, judge, _RUNGS, k)
      three = [found.best, *_uniform(k)]
      frechet = _judge(held, process, times)(three)
      sliced = []
      for candidate in three:
        table = autodiffusion.table(candidate, process, times)
        x = sampling.sample(key, model, table, held.start)
        directions = jax.random.fold_in(key, 2)
        sliced.append(
          float(metrics.sliced_wasserstein(directions, x, data[: len(x)]))
        )
      out[f"frechet_d{d}_{k}"] = frechet[0] / frechet[1:].min()
      out[f"sliced_d{d}_{k}"] = sliced[0] / min(sliced[1:])
  return out


def _digits_network(seed):
  process = processes.vp_linear()
  times = autodiffusion.ladder(process, _RUNGS)
  key = jax.random.key(seed)
  data = _digits.images()
  model = _trained(seed, width=64)
  gated = skipping.gated(model)
  task, held = _tasks(key, process, gated, _digits.SHAPE, data, 4096, 512)
  options = dict(bind=skipping.with_mask, n_blocks=_BLOCKS, rows=6)
  judge = autodiffusion.fitness(task, process, times, chunk=4, **options)
  whole = task._replace(model=model)
  judge_steps = autodiffusion.fitness(whole, process, times, chunk=4)
  report = _judge(held, process, times, **options)
  steps = autodiffusion.search_steps(key, judge_steps, _RUNGS, 4)
  config = autodiffusion.Config(epochs=15, max_prune=3 / _BLOCKS)
  joint = autodiffusion.search_joint(
    key, judge, _RUNGS, 4 * _BLOCKS, _BLOCKS, config
  )
  values = report([steps.best, joint.best, *_uniform(4)])
  uniform = values[2:].min()
  other = _trained(seed + 100, width=48)
  moved = held._replace(model=other)
  second = _judge(moved, process, times)([steps.best, *_uniform(4)])
  half = len(data) // 2
  shuffled = np.random.default_rng(seed).permutation(data)
  floor = fitness.frechet_to(shuffled[:half], features=32, seed=1)
  return dict(
    joint=values[1] / uniform,
    joint_steps=values[1] / values[0],
    steps=values[0] / uniform,
    uniform=uniform,
    transfer=second[0] / second[1:].min(),
    floor=float(floor(shuffled[half:])),
    joint_length=len(joint.best.steps),
  )


def _tasks(key, process, model, shape, data, many, noises=1000):
  """Returns what is searched on, and other noises with other features."""
  index = np.arange(noises)
  task = populations.Problem(
    key,
    model,
    process.prior(key, (len(index), *shape), index=index),
    fitness.frechet_to(data, features=32, seed=0),
    index,
  )
  other = fitness.frechet_to(data, features=32, seed=1)
  return task, populations.held_out(
    task, process, range(1000, 1000 + many), other
  )


def _judge(problem, process, times, **options):
  return autodiffusion.fitness(problem, process, times, chunk=1, **options)


def _uniform(k):
  return [
    autodiffusion.uniform(_RUNGS, k),
    autodiffusion.linspace(_RUNGS, k),
  ]


@functools.cache
def _trained(seed, width, steps=2000):
  """Returns a residual perceptron with 8 blocks; kept on disk."""
  model = _digits.fresh(
    seed,
    processes.vp_linear(),
    prediction="edm",
    width=width,
    blocks=_BLOCKS,
  )
  name = hashlib.sha256(f"1 {seed} {width} {steps}".encode()).hexdigest()[:16]
  folder = os.environ.get("JAXDIFF_CACHE") or "~/.cache/jaxdiff"
  path = pathlib.Path(folder).expanduser() / f"evidence-blocks-{name}.msgpack"
  if not path.exists():
    params = _digits.train(model, seed, steps=steps).params
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
      f.write(serialization.to_bytes(jax.device_get(params)))
    os.replace(f.name, path)
  params = serialization.from_bytes(model.params, path.read_bytes())
  return dataclasses.replace(model, params=params)
