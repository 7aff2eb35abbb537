"""One step on the 25-mode grid without data, by score implicit matching.

The student begins as the network that imitated the exact teacher, asked at
sigma = 2.5. 6000 updates of 512, one fake step each, Adam 1e-3 (the fake score
2e-3) with a cosine schedule; pseudo-Huber distance with c = 0.01, sigma of x_t
log-uniform in [0.02, 5], weights of (alpha / sigma)^0.75. Robustness: 700
updates, constant learning rates from 1e-4 to 3e-3 (the fake score 1e-3), no
clipping.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

from ..parts import grid25
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "SIM"
CLAIM = (
  "Score implicit matching makes one-step students without data, and its"
  " pseudo-Huber distance is less sensitive to the learning rate than the"
  " squared one."
)
PAPER = "https://arxiv.org/abs/2410.16794"
SEEDS = (0, 1, 2)
BARS = (
  at_most("sw2", 0.045, "sliced W_2 to data, one step"),
  at_least("modes", 25, "modes that hold a fifth of their due or more, of 25"),
  at_least("share", 0.82, "share of samples within 4 std of a mode"),
  at_most("start", 1.0, "sliced W_2 over that of the undistilled network"),
  at_most("heun", 1.0, "sliced W_2 over that of the teacher's 5 Heun steps"),
  at_most(
    "worst",
    0.7,
    "worst sliced W_2 over learning rates (10 if not finite), pseudo-Huber over"
    " squared distance",
  ),
)
REPORTED = (
  reported("start_sw2", "undistilled network in one step: sliced W_2"),
  reported("heun_sw2", "exact teacher, 5 steps of Heun: sliced W_2"),
  *(
    reported(f"{name}_{rate:g}", f"{name}, learning rate {rate:g}: sliced W_2")
    for name in ("huber", "squared")
    for rate in (1e-4, 3e-4, 1e-3, 3e-3)
  ),
)
LIMITS = (
  "images. The power of the weights was chosen on seed 3: of 0.5, 0.75 and (on"
  " seeds 0 to 2) 1, the share of samples in a mode was .80, .85 and .80, and"
  " .75 with equal weights."
)

_GRID = np.asarray([2.5, 0.0])
_RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def train(
  seed: int,
  steps: int,
  rate: Any,
  fake_rate: Any,
  *,
  clip: bool,
  **options: Any,
) -> dict[str, float]:
  """Returns the quality of a student; sw2 = 10 if its training diverged."""
  times = losses.times.uniform_log_snr(processes.edm(0.02, 5.0))
  adam = lambda rate: optax.adam(rate, b1=0.0, b2=0.99)
  method = distillation.sim(
    grid25.teacher(),
    grid25.warm(seed),
    optimizer=adam(rate),
    fake_optimizer=adam(fake_rate),
    times=times,
    fake_times=times,
    weighting=lambda log_snr: jnp.exp(0.75 * log_snr),
    **options,
  )
  if not clip:
    players = {
      name: dataclasses.replace(player, clip_norm=None)
      for name, player in method.players.items()
    }
    method = dataclasses.replace(method, players=players)
  try:
    student = grid25.train(method, seed, steps)
  except FloatingPointError:
    return dict(sw2=10.0, modes=0.0, share=0.0)
  return grid25.quality(grid25.draw(student, seed, _GRID), seed)


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one network."""
  steps = 6000
  cosine = optax.cosine_decay_schedule
  own = train(
    seed,
    steps,
    cosine(1e-3, steps, alpha=0.02),
    cosine(2e-3, steps, alpha=0.1),
    clip=True,
  )
  start = grid25.quality(grid25.draw(grid25.warm(seed), seed, _GRID), seed)
  heun = grid25.quality(_heun(seed), seed)
  several = {
    f"{name}_{rate:g}": train(seed, 700, rate, 1e-3, clip=False, distance=name)[
      "sw2"
    ]
    for name in ("huber", "squared")
    for rate in _RATES
  }
  worst = lambda name: max(several[f"{name}_{rate:g}"] for rate in _RATES)
  return (
    own
    | several
    | dict(
      start=own["sw2"] / start["sw2"],
      heun=own["sw2"] / heun["sw2"],
      worst=worst("huber") / worst("squared"),
      start_sw2=start["sw2"],
      heun_sw2=heun["sw2"],
    )
  )


def _heun(seed):
  process = grid25.PROCESS
  table = solvers.heun(process, grids.karras(process, 5, to_zero=True))
  key = jax.random.fold_in(jax.random.key(seed), 5)
  x = process.prior(key, (grid25.SAMPLES, *grid25.SHAPE))
  return sampling.sample(key, grid25.teacher(), table, x)
