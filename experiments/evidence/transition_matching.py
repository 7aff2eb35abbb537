"""Kernels that are distributions, on the 25-mode grid: exact and learned.

A: exact kernels, nothing learned. B: an MLP 3 x 128 with a head of 3 blocks of
64 (DTM, T = 8, one token) against the same MLP as a flow, both 3000 updates of
256.
"""

import functools

import jax
import numpy as np
import optax

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from jaxdiff.distillation.transition_matching import dtm

from ..parts import grid25
from .report import at_most
from .report import reported

TITLE = "Transition matching"
CLAIM = (
  "A few transitions that are drawn from their distribution, by a light head"
  " on a heavy network, replace many Euler steps along its mean."
)
PAPER = "https://arxiv.org/abs/2506.23589"
SEEDS = (0, 1, 2)
BARS = (
  at_most(
    "joint",
    0.04,
    "grid, exact joint kernel: largest sliced W_2 for T = 1, 2, 4, 8",
  ),
  at_most(
    "joint_2",
    0.12,
    "grid, exact joint kernel at T = 2: sliced W_2 over that of 2 Euler steps",
  ),
  at_most(
    "factorised_falls",
    1.0,
    "diagonal of 5 modes, factorised kernel: largest ratio of sliced W_2 to"
    " that of the next smaller T in 1, 2, 4, 8, 32",
  ),
  at_most(
    "factorised",
    1.0,
    "the same: largest ratio to that of Euler at equal T = 4, 8, 32",
  ),
  at_most(
    "learned",
    0.06,
    "grid, learned DTM, 8 transitions of 8 head steps: sliced W_2",
  ),
  at_most(
    "learned_flow",
    0.7,
    "the same over that of a learned flow, 8 Euler steps, the same backbone",
  ),
)
REPORTED = (
  *(
    reported(f"{name}_{steps}", f"{what}, T = {steps}: sliced W_2")
    for name, what in (
      ("euler", "grid, Euler on the exact flow"),
      ("diagonal", "diagonal, factorised kernel"),
      ("diagonal_euler", "diagonal, Euler"),
    )
    for steps in (1, 2, 4, 8, 32)
  ),
  reported("floor", "sliced W_2 of two draws of the grid of this size"),
  reported("flow_8", "grid, learned flow, 8 Euler steps: sliced W_2"),
  reported("flow_64", "grid, learned flow, 64 Euler steps: sliced W_2"),
  reported("learned_share", "grid, learned DTM: share of samples in a mode"),
  reported("flow_share", "grid, learned flow, 8 steps: share in a mode"),
)
LIMITS = (
  "text-to-image, quality against wall-clock time, learned kernels of several"
  " tokens, and the causal variants ARTM and FHTM, which the tests cover alone."
)

_STEPS = (1, 2, 4, 8, 32)
_FLOW = processes.rectified_flow(1e-3)
_DIAGONAL = oracles.mixture(
  np.linspace(-1.0, 1.0, 5)[:, None].repeat(2, axis=1), np.full(5, 0.05**2)
)
_BATCH = 256
# the bars were set where two draws of the grid are 0.03 apart; the distance
# between draws of separate modes falls like the fourth root of their number
_SAMPLES = 16384


def _distance(seed, law, x):
  key = jax.random.fold_in(jax.random.key(seed), 4)
  truth, _ = law.sample(jax.random.fold_in(key, 0), len(x))
  return float(
    metrics.sliced_wasserstein(jax.random.fold_in(key, 1), x, truth, 256)
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _walk(key, kernel, steps):
  x = jax.random.normal(jax.random.fold_in(key, 0), (_SAMPLES, 2))
  return dtm.walk(jax.random.fold_in(key, 1), kernel, x, steps)


def exact(seed: int) -> dict[str, float]:
  """Returns the numbers of part A."""
  key = jax.random.fold_in(jax.random.key(seed), 5)

  def curve(law, kernel):
    return {n: _distance(seed, law, _walk(key, kernel, n)) for n in _STEPS}

  joint = curve(grid25.LAW, dtm.exact_kernel(grid25.LAW))
  euler = curve(grid25.LAW, dtm.mean_kernel(grid25.LAW))
  apart = curve(_DIAGONAL, dtm.exact_kernel(_DIAGONAL, factorised=True))
  diagonal = curve(_DIAGONAL, dtm.mean_kernel(_DIAGONAL))
  again, _ = grid25.LAW.sample(jax.random.fold_in(key, 2), _SAMPLES)
  named = dict(euler=euler, diagonal=apart, diagonal_euler=diagonal)
  pairs = zip(_STEPS, _STEPS[1:])
  return dict(
    joint=max(joint[n] for n in _STEPS[:-1]),
    joint_2=joint[2] / euler[2],
    factorised_falls=max(apart[b] / apart[a] for a, b in pairs),
    factorised=max(apart[n] / diagonal[n] for n in (4, 8, 32)),
    floor=_distance(seed, grid25.LAW, again),
    **{f"{name}_{n}": c[n] for name, c in named.items() for n in _STEPS},
  )


def _adam(steps):
  return optax.adam(optax.warmup_cosine_decay_schedule(0, 2e-3, 100, steps))


def flow(seed: int, updates: int) -> denoisers.Denoiser:
  """Returns the grid's network trained by flow matching."""
  model = grid25.fresh(seed, _FLOW, prediction="flow")
  loss = losses.denoising(
    model, times=losses.times.uniform(_FLOW), weighting="output"
  )
  optimizer = _adam(updates)
  key = jax.random.fold_in(jax.random.key(seed), 1)
  state = training.train(
    training.init_state(key, model.params, optimizer),
    training.make_update(loss, optimizer, ema=0.999),
    grid25.batches(seed, _BATCH),
    steps=updates,
    progress=False,
  )
  return distillation.with_params(model, state.ema_params)


def chain(seed: int, updates: int) -> distillation.Transitions:
  """Returns a network of the same backbone trained by DTM."""
  model = distillation.transitions(
    jax.random.key(seed),
    grid25.SHAPE,
    "dtm",
    steps=8,
    continuous=False,
    width=128,
    depth=3,
    heads=0,
    data_std=grid25.SIGMA_DATA,
  )
  method = distillation.transition_matching(model, optimizer=_adam(updates))
  return grid25.train(method, seed, updates, batch=_BATCH)


def learned(seed: int, updates: int = 3000) -> dict[str, float]:
  """Returns the numbers of part B."""
  key = jax.random.fold_in(jax.random.key(seed), 6)
  x = jax.random.normal(jax.random.fold_in(key, 0), (_SAMPLES, 2))
  own, other = chain(seed, updates), flow(seed, updates)

  def euler(n):
    table = solvers.euler(_FLOW, np.linspace(1.0, 0.0, n + 1))
    return grid25.quality(sampling.sample(key, other, table, x), seed)

  drawn = distillation.sample_transitions(key, own, len(x), head_steps=8)
  found, few = grid25.quality(drawn, seed), euler(8)
  return dict(
    learned=found["sw2"],
    learned_flow=found["sw2"] / few["sw2"],
    learned_share=found["share"],
    flow_8=few["sw2"],
    flow_64=euler(64)["sw2"],
    flow_share=few["share"],
  )


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one seed of noise, networks and batches."""
  return exact(seed) | learned(seed)
