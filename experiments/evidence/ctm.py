r"""CTM: a student that jumps anywhere, against consistency distillation.

The 25-mode grid with its exact teacher, EDM's process from 0.02 to 20, an MLP 3
x 128 that has imitated the teacher. CTM (17 intervals of a Karras grid, Heun's
teacher, the denoising term weighted by 0.05) and CD (the same grid, teacher and
network) are trained on 4000 batches of 512 each, Adam 3e-3 with a cosine
schedule. The denoising term has the noise of its data, the other one has none:
weighted by 0.5 it blurs the jumps (share of samples in a mode .63 on seed 0).

Where a jump ends is compared with the teacher's ODE, 200 steps of RK4 from the
same noise: the rmse of a coordinate. The ODE parts neighbouring modes at sharp
borders, and a sample that lands in the next mode is off by 0.5: the median and
the share of such samples are reported beside.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import likelihood
from jaxdiff import sampling
from jaxdiff import solvers

from ..parts import grid25
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Consistency trajectory models"
CLAIM = (
  "One network makes every jump of the ODE: samples in one step, no worse with"
  " more steps, whole trajectories, and still the score and the likelihood."
)
PAPER = "https://arxiv.org/abs/2310.02279"
SEEDS = (0, 1, 2)
BARS = (
  at_most("sw2", 0.04, "sliced W2 of one step"),
  at_least("share", 0.85, "share of samples in a mode, one step"),
  at_most(
    "lost",
    0.03,
    "share of samples in a mode: what 8 steps of gamma = 0 lose against 1",
  ),
  at_least(
    "over_renoising",
    0.0,
    "share of samples in a mode, 8 steps: gamma = 0 less gamma = 1",
  ),
  at_most(
    "trajectory",
    0.08,
    "largest rmse of a jump from t_max to sigma 5, 1, 0.3, t_min, against 200"
    " steps of the ODE",
  ),
  at_most(
    "score",
    0.05,
    "rmse of g(x, t, t) against the exact denoiser, sigma log-uniform",
  ),
  at_most(
    "likelihood",
    0.05,
    "error of the mean log density of fresh data by g(x, t, t), in nats",
  ),
)
REPORTED = (
  reported("floor", "sliced W2 of two draws of the law"),
  *(
    reported(f"trajectory_{i}", f"rmse of a jump from t_max to sigma {s:g}")
    for i, s in enumerate((5.0, 1.0, 0.3, 0.02))
  ),
  reported("median", "median distance of one step to the ODE's end"),
  reported("strayed", "share of single steps that end in another mode"),
  reported("cd_median", "the same median of CD"),
  reported("cd_strayed", "the same share of CD"),
  reported("modes", "modes found by one step, of 25"),
  *(reported(f"sw2_{n}", f"sliced W2, {n} steps, gamma = 0") for n in (2, 8)),
  reported("share_8", "share of samples in a mode, 8 steps, gamma = 0"),
  reported("sw2_8_renoised", "sliced W2, 8 steps, gamma = 1"),
  reported("share_8_renoised", "the same share, gamma = 1"),
  reported("cd_sw2", "CD: sliced W2 of one step"),
  reported("cd_share", "CD: share in a mode, one step"),
  reported("cd_sw2_8", "CD: sliced W2, 8 steps (gamma = 1, its only sampler)"),
  reported("cd_share_8", "CD: share in a mode, 8 steps"),
  reported("warm_score", "the rmse of the score before CTM"),
  reported("cd_score", "the same of CD's network: its score is lost"),
  *(
    reported(f"heun_{n}", f"sliced W2 of the teacher by Heun, {n} calls")
    for n in (5, 9)
  ),
)
LIMITS = (
  "images, FID and the adversarial term, which the paper's records need; more"
  " steps than 8."
)

STEPS = 4000
_PLACES = (5.0, 1.0, 0.3, 0.02)


def students(seed: int, steps: int = STEPS) -> tuple[Any, Any]:
  """Returns the trained students of CTM and of CD."""
  teacher, warm = grid25.teacher(), grid25.warm(seed)
  key = jax.random.fold_in(jax.random.key(seed), 5)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  ctm = distillation.ctm(
    teacher,
    distillation.student_of(key, warm, grid25.SHAPE, jumps=True),
    optimizer=optimizer,
    dsm=0.05,
  )
  cd = distillation.consistency_distillation(teacher, warm, optimizer=optimizer)
  return grid25.train(ctm, seed, steps), grid25.train(cd, seed, steps)


def measure(seed: int) -> dict[str, float]:
  """Returns every number of BARS and REPORTED."""
  ctm, cd = students(seed)
  quality = functools.partial(_quality, seed)
  one, renoised = quality(ctm, 1, 0.0), quality(ctm, 8, 1.0)
  more = {n: quality(ctm, n, 0.0) for n in (2, 8)}
  cd_one, cd_more = quality(cd, 1, 1.0), quality(cd, 8, 1.0)
  there = _trajectory(ctm, seed)
  median, strayed = _end(ctm, seed)
  cd_median, cd_strayed = _end(cd, seed)
  x, _ = grid25.LAW.sample(jax.random.key(seed + 200), grid25.SAMPLES)
  return dict(
    sw2=one["sw2"],
    share=one["share"],
    lost=one["share"] - more[8]["share"],
    over_renoising=more[8]["share"] - renoised["share"],
    trajectory=max(there),
    score=_score(ctm, seed),
    likelihood=_likelihood(ctm, seed),
    floor=grid25.quality(x, seed)["sw2"],
    **{f"trajectory_{i}": v for i, v in enumerate(there)},
    median=median,
    strayed=strayed,
    cd_median=cd_median,
    cd_strayed=cd_strayed,
    modes=one["modes"],
    **{f"sw2_{n}": v["sw2"] for n, v in more.items()},
    share_8=more[8]["share"],
    sw2_8_renoised=renoised["sw2"],
    share_8_renoised=renoised["share"],
    cd_sw2=cd_one["sw2"],
    cd_share=cd_one["share"],
    cd_sw2_8=cd_more["sw2"],
    cd_share_8=cd_more["share"],
    warm_score=_score(grid25.warm(seed), seed),
    cd_score=_score(cd, seed),
    **{f"heun_{n}": _heun(seed, n) for n in (5, 9)},
  )


def _quality(seed, student, n, gamma):
  grid = grids.karras(grid25.PROCESS, n)
  return grid25.quality(grid25.draw(student, seed, grid, gamma=gamma), seed)


def _heun(seed, calls):
  """Returns the sliced W2 of the teacher's own samples."""
  table = solvers.heun(
    grid25.PROCESS, grids.karras(grid25.PROCESS, (calls + 1) // 2, to_zero=True)
  )
  x = sampling.sample(jax.random.key(0), grid25.teacher(), table, _noise(seed))
  return grid25.quality(x, seed)["sw2"]


def _noise(seed):
  key = jax.random.fold_in(jax.random.key(seed), 6)
  return grid25.PROCESS.prior(key, (grid25.SAMPLES, *grid25.SHAPE))


@functools.cache
def _solved(seed):
  """Returns where the ODE takes the noise by each of the places."""
  x, at, ends = _noise(seed), grid25.PROCESS.t_max, []
  for s in _PLACES:
    table = solvers.rk4(grid25.PROCESS, np.geomspace(at, s, 51))
    x = sampling.sample(jax.random.key(0), grid25.teacher(), table, x)
    at = s
    ends.append(x)
  return ends


def _trajectory(student, seed):
  """Returns the rmse of a coordinate after jumps to each of the places."""
  x, t = _noise(seed), grid25.PROCESS.t_max
  rmse = lambda s, end: jnp.sqrt(
    jnp.mean((distillation.flow_map(student, x, t, s) - end) ** 2)
  )
  return [
    float(rmse(s, end)) for s, end in zip(_PLACES, _solved(seed), strict=True)
  ]


def _end(student, seed):
  """Returns (median distance, share in another mode) of one step."""
  grid = grids.karras(grid25.PROCESS, 1)
  model, table = distillation.sampler(student, grid, gamma=0.0)
  x = sampling.sample(jax.random.key(0), model, table, _noise(seed))
  off = jnp.linalg.norm(x - _solved(seed)[-1], axis=-1)
  return float(jnp.median(off)), float(jnp.mean(off > 0.25))


def _score(student, seed):
  """Returns the rmse of a coordinate of the denoiser x0(x, t)."""
  process, key = grid25.PROCESS, jax.random.fold_in(jax.random.key(seed), 7)
  x0, _ = grid25.LAW.sample(jax.random.fold_in(key, 0), grid25.SAMPLES)
  ends = np.log([process.t_min, process.t_max])
  t = jnp.exp(jnp.linspace(*ends, grid25.SAMPLES))
  x, _ = process.perturb(jax.random.fold_in(key, 1), x0, t)
  off = student(x, t).x0 - grid25.teacher()(x, t).x0
  return float(jnp.sqrt(jnp.mean(off**2)))


def _likelihood(student, seed):
  """Returns |mean log p(x) by the student's ODE - the exact mean|, in nats."""
  process, key = grid25.PROCESS, jax.random.fold_in(jax.random.key(seed), 8)
  x0, _ = grid25.LAW.sample(jax.random.fold_in(key, 0), 512)
  x, _ = process.perturb(jax.random.fold_in(key, 1), x0, process.t_min)
  at_end = lambda z: grid25.LAW.log_prob(z, 1.0, process.t_max)
  found = likelihood.log_likelihood(
    key,
    student,
    process,
    x,
    solver=solvers.heun,
    grid=grids.karras(process, 60),
    trace="exact",
    prior=at_end,
  )
  exact = grid25.LAW.log_prob(x, 1.0, process.t_min)
  return float(abs(jnp.mean(found.log_prob - exact)))
