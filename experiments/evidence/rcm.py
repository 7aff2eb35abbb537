"""Consistency in continuous time, with and without the scores of its samples.

25 modes in the plane with the exact teacher; an MLP 3 x 128 that has imitated
it begins as student and as fake score. sCM 6000 updates, rCM 3000 with 3 steps
of the fake score each, batches of 512. The derivative is then scaled by 0.9,
which stands for one of low precision: sCM 4000 updates, rCM 2000.
"""

import time

import jax
import numpy as np
import optax

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import metrics

from ..parts import grid25
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "rCM"
CLAIM = (
  "A consistency model in continuous time makes one-step samples; the scores of"
  " its own samples repair what an imprecise derivative costs it, and keep the"
  " modes that distribution matching alone may lose."
)
PAPER = "https://arxiv.org/abs/2510.08431"
SEEDS = (0, 1, 2)
BARS = (
  at_most("scm", 0.045, "sCM, one step: sliced W_2"),
  at_least("scm_share", 0.85, "sCM, one step: share of samples in a mode"),
  at_least("scm_modes", 25, "sCM, one step: modes of 25"),
  at_most("rcm", 0.045, "rCM, one step: sliced W_2"),
  at_least("rcm_share", 0.83, "rCM, one step: share of samples in a mode"),
  at_most(
    "repaired",
    0.75,
    "derivative times 0.9: sliced W_2 of rCM over that of sCM, one step",
  ),
  at_least(
    "rcm_variance_low", 0.7, "rCM: variance within modes over the data's"
  ),
  at_most("rcm_variance_high", 1.3, "rCM: the same"),
)
REPORTED = (
  reported("teacher", "sliced W_2 of one step of the teacher"),
  reported("floor", "sliced W_2 of two samples of the law"),
  reported("scm_two", "sCM, two steps: sliced W_2"),
  reported("scm_two_share", "sCM, two steps: share of samples in a mode"),
  reported("rcm_two", "rCM, two steps: sliced W_2"),
  reported("rcm_modes", "rCM, one step: modes of 25"),
  reported("scm_scaled", "sCM with the derivative times 0.9: sliced W_2"),
  reported("rcm_scaled", "rCM with the derivative times 0.9: sliced W_2"),
  reported("dmd", "matching alone, 1 step of the fake score: sliced W_2"),
  reported("dmd_modes", "matching alone: modes of 25"),
  reported("dmd_variance", "matching alone: variance within modes"),
  reported("jvp_cost", "time of an update of sCM over one of imitation"),
)
LIMITS = (
  "video and large images, low precision itself (the derivative is scaled"
  " instead), long training: a small network learns sCM's detail here."
)

_WARMUP = 500
_WEIGHT = 0.3  # of the matching against the consistency's 1
_GRIDS = np.asarray([20.0, 0.02]), np.asarray([20.0, 0.5, 0.02])


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of BARS and REPORTED for one seed."""
  start = grid25.warm(seed)
  scm = _scm(start, seed, 6000)
  scm_scaled = _scm(start, seed, 4000, scale=0.9)
  rcm = _rcm(start, seed, 3000)
  rcm_scaled = _rcm(start, seed, 2000, scale=0.9)
  dmd = grid25.train(
    distillation.dmd(
      grid25.teacher(), start, optimizer=optax.adam(1e-3), fake_steps=1
    ),
    seed,
    3000,
  )
  one = {
    name: grid25.draw(student, seed, _GRIDS[0])
    for name, student in dict(
      scm=scm, scm_scaled=scm_scaled, rcm=rcm, rcm_scaled=rcm_scaled, dmd=dmd
    ).items()
  }
  quality = {name: grid25.quality(x, seed) for name, x in one.items()}
  scm_two, rcm_two = (
    grid25.quality(grid25.draw(student, seed, _GRIDS[1]), seed)
    for student in (scm, rcm)
  )
  key = jax.random.fold_in(jax.random.key(seed), 5)
  truth = [
    grid25.LAW.sample(k, grid25.SAMPLES)[0] for k in jax.random.split(key)
  ]
  teacher = grid25.draw(grid25.teacher(), seed, _GRIDS[0])
  sw2 = {name: q["sw2"] for name, q in quality.items()}
  return dict(
    scm=sw2["scm"],
    scm_share=quality["scm"]["share"],
    scm_modes=quality["scm"]["modes"],
    rcm=sw2["rcm"],
    rcm_share=quality["rcm"]["share"],
    repaired=sw2["rcm_scaled"] / sw2["scm_scaled"],
    rcm_variance_low=_variance(one["rcm"]),
    rcm_variance_high=_variance(one["rcm"]),
    teacher=grid25.quality(teacher, seed)["sw2"],
    floor=float(metrics.sliced_wasserstein(key, *truth, 256)),
    scm_two=scm_two["sw2"],
    scm_two_share=scm_two["share"],
    rcm_two=rcm_two["sw2"],
    rcm_modes=quality["rcm"]["modes"],
    scm_scaled=sw2["scm_scaled"],
    rcm_scaled=sw2["rcm_scaled"],
    dmd=sw2["dmd"],
    dmd_modes=quality["dmd"]["modes"],
    dmd_variance=_variance(one["dmd"]),
    jvp_cost=_cost(start),
  )


def _scm(start, seed, steps, scale=1.0):
  method = distillation.scm(
    grid25.teacher(),
    start,
    optimizer=_falling(3e-4, steps),
    times=_times(-0.8),
    warmup=_WARMUP,
    jvp=_scaled(scale),
  )
  return grid25.train(method, seed, steps)


def _rcm(start, seed, steps, scale=1.0):
  method = distillation.rcm(
    grid25.teacher(),
    start,
    optimizer=_falling(3e-4, steps),
    # it makes three steps an update, and a schedule would count them all
    fake_optimizer=optax.adam(5e-4),
    fake_steps=3,
    dmd_weight=_WEIGHT,
    calls=2,
    warmup=_WARMUP,
    jvp=_scaled(scale),
  )
  return grid25.train(method, seed, steps)


def _falling(rate, steps):
  return optax.adam(optax.cosine_decay_schedule(rate, steps))


def _times(mean):
  """Returns times with log tan a ~ N(mean, 1.6^2)."""
  shift = float(np.log(grid25.SIGMA_DATA))
  return losses.times.log_normal(grid25.PROCESS, mean + shift, 1.6)


def _scaled(scale):
  """Returns a `jax.jvp` whose derivative is too small by a factor."""

  def push(f, primals, tangents):
    value, slope = jax.jvp(f, primals, tangents)
    return value, scale * slope

  return push


def _variance(x):
  """Returns the variance within modes over the data's, of samples in one."""
  x, means = np.asarray(x), np.asarray(grid25.LAW.means)
  offset = x[:, None] - means
  distance = np.linalg.norm(offset, axis=-1)
  inside = distance.min(1) < 4 * 0.05
  own = offset[np.arange(len(x)), distance.argmin(1)][inside]
  return float(np.mean(own**2) / 0.05**2)


def _cost(start):
  """Returns the time of an update of sCM over one of imitation."""
  options = dict(optimizer=optax.adam(1e-4), times=_times(-0.8))
  batch = next(iter(grid25.batches(0)))
  seconds = []
  for build in (distillation.scm, distillation.imitation):
    method = build(grid25.teacher(), start, **options)
    update = distillation.make_update(method)
    state = distillation.init_state(jax.random.key(0), method)
    state, _ = update(state, batch)  # compiles
    best = np.inf
    for _ in range(5):
      begun = time.perf_counter()
      for _ in range(20):
        state, _ = update(state, batch)
      jax.block_until_ready(state.params)
      best = min(best, time.perf_counter() - begun)
    seconds.append(best)
  return seconds[0] / seconds[1]
