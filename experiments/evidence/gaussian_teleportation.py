"""Teleportation in front of Heun's method on a trained network of digits.

2000 samples from one x_T for all, Karras grids from 80 to .002 and on to 0;
truth is Heun's endpoint after 64 steps (127 calls); Frechet distance (FD) of 96
random tanh features against the digits.
"""

import jax
import numpy as np

from jaxdiff import grids
from jaxdiff import metrics
from jaxdiff import oracles
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers

from . import _digits
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Gaussian teleportation"
CLAIM = (
  "At moderate and high noise a trained score is that of one Gaussian with the"
  " data's mean and covariance: its closed-form flow replaces the first steps"
  " at no loss, down to a boundary."
)
PAPER = "https://arxiv.org/abs/2412.09726"
SEEDS = (0, 1, 2)
BARS = (
  at_most(
    "truncate_5",
    0.05,
    "relative change of FD by skipping 5 of 18 steps (35 -> 25 calls)",
  ),
  at_most(
    "truncate_8",
    0.10,
    "relative change of FD by skipping 8 of 18 steps (35 -> 19 calls)",
  ),
  at_most(
    "respend_fd",
    0.1,
    "11 calls, skip to sigma = 2 and respend: FD over plain Heun's",
  ),
  at_most(
    "respend_rmse",
    0.25,
    "11 calls, skip to sigma = 2 and respend: rmse to the truth over Heun's",
  ),
  at_most(
    "unexplained_high",
    2e-3,
    "largest unexplained share of the score at sigma 3, 10 and 30",
  ),
  at_least("unexplained_low", 0.1, "unexplained share at sigma = .3"),
  at_least(
    "boundary",
    1.5,
    "35 calls, skip to sigma = .7: FD over plain Heun's, worse beyond",
  ),
)
REPORTED = (
  reported("heun_35", "FD of plain Heun at 35 calls"),
  reported("heun_11", "FD of plain Heun at 11 calls"),
  reported("respend_11", "FD at 11 calls, skip to 2"),
  reported("respend_15", "FD at 15 calls, skip to 3, over plain Heun's"),
  reported("respend_19", "FD at 19 calls, skip to 10, over plain Heun's"),
  reported("chosen", "sigma chosen at a tolerance of 1e-3 on the 18-step grid"),
  reported("mixture_low", "unexplained at .3 by a mixture of 10 Gaussians"),
  reported("points_low", "unexplained at .3 by the training points"),
  reported(
    "early_gain",
    "explained share at sigma = .4 after 500 updates less that after 6000: the"
    " linear part is learned first if positive",
  ),
)
LIMITS = "images of natural scenes, where 15 to 30 % of the steps were skipped."

_COUNT = 2000


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one trained network."""
  key = jax.random.key(seed)
  model = _digits.denoiser(seed)
  process, data = model.process, _digits.images()
  stats = oracles.fit(data)
  x = process.prior(key, (_COUNT, *_digits.SHAPE))
  karras = lambda n, **kw: grids.karras(process, n, to_zero=True, **kw)
  plain = lambda n: sampling.sample(
    key, model, solvers.heun(process, karras(n)), x
  )

  def jump(grid):
    table = solvers.heun(process, grid)
    return samplers.teleport_sample(
      key, model, table, x, process=process, stats=stats
    )[0]

  fd = lambda v: metrics.random_feature_frechet(v, data)
  truth = plain(64)
  rmse = lambda v: float(np.sqrt(np.mean(np.square(v - truth))))
  full = karras(18)
  base = fd(plain(18))
  short = plain(6)
  respent = jump(karras(6, start=2.0))
  share = lambda law, sigma, net=model: float(
    oracles.unexplained(
      key, net, oracles.exact(law, process), process, data, [sigma]
    )[0]
  )
  rungs = oracles.score_ladder(data)
  young = _digits.denoiser(seed, steps=500)
  return dict(
    truncate_5=abs(fd(jump(full[5:])) / base - 1.0),
    truncate_8=abs(fd(jump(full[8:])) / base - 1.0),
    respend_fd=fd(respent) / fd(short),
    respend_rmse=rmse(respent) / rmse(short),
    unexplained_high=max(share(stats, s) for s in (3.0, 10.0, 30.0)),
    unexplained_low=share(stats, 0.3),
    boundary=fd(jump(karras(18, start=0.7))) / base,
    heun_35=base,
    heun_11=fd(short),
    respend_11=fd(respent),
    respend_15=fd(jump(karras(8, start=3.0))) / fd(plain(8)),
    respend_19=fd(jump(karras(10, start=10.0))) / fd(plain(10)),
    chosen=samplers.choose_skip(
      key, model, stats, process, data, karras(18)[:-1]
    ),
    mixture_low=share(rungs["mixture"], 0.3),
    points_low=share(rungs["points"], 0.3),
    early_gain=share(stats, 0.4) - share(stats, 0.4, young),
  )
