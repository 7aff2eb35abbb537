"""PFGM++: does a small D make samplers robust to noise in their states?

Networks of the shared recipe (residual MLP 3 x 256 on digits 8 x 8), trained
for D in {16, 64, 2048, infinity}: 2,000 updates each instead of the sheet's
6,000, which leaves the budget of a few minutes. 2,000 samples by Heun's method,
18 steps; before each step noise of scale amount * sigma is added. FD: Frechet
distance of 96 random tanh features to the data.
"""

import jax

from jaxdiff import grids
from jaxdiff import metrics
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

from . import _digits
from . import report

TITLE = "PFGM++"
CLAIM = (
  "One number D leads from Poisson flow to diffusion, and a small D makes"
  " sampling more robust to errors in the intermediate states"
)
PAPER = "https://arxiv.org/abs/2302.04265"
SEEDS = (0, 1, 2)
LIMITS = (
  "That D = 2048 beats EDM by 0.06 FID on CIFAR-10 is far below the spread"
  " between seeds here."
)

_DIMS = {"16": 16.0, "64": 64.0, "2048": 2048.0, "inf": None}
_AMOUNTS = {"0": 0.0, "1": 0.1, "2": 0.2, "3": 0.3}
_STEPS = 2000
_SAMPLES = 2000

BARS = (
  report.at_most("ratio_3", 0.80, "FD(D=16) / FD(EDM) at noise 0.3"),
  report.at_most("ratio_2", 0.90, "FD(D=16) / FD(EDM) at noise 0.2"),
  report.at_least("rise_64", 1.0, "FD(D=64) / FD(D=16) at noise 0.3"),
  report.at_least("rise_2048", 1.0, "FD(D=2048) / FD(D=64) at noise 0.3"),
  report.at_most("apart", 1.25, "largest FD / FD(EDM) over D, no noise"),
  report.at_least("apart_low", 0.75, "smallest FD / FD(EDM) over D, no noise"),
)
REPORTED = tuple(
  report.reported(f"fd_{d}_{a}", f"FD of D={d}, noise {amount}")
  for d in _DIMS
  for a, amount in _AMOUNTS.items()
)


def measure(seed: int) -> dict[str, float]:
  fd = {}
  for name, aug_dim in _DIMS.items():
    process = processes.pfgmpp(aug_dim)
    model = _digits.denoiser(seed, process, steps=_STEPS)
    table = solvers.heun(process, grids.karras(process, 18, to_zero=True))
    key = jax.random.fold_in(jax.random.key(seed), 2)
    for a, amount in _AMOUNTS.items():
      x = sampling.sample(
        key,
        model,
        solvers.inject_noise(table, process, amount),
        (_SAMPLES, *_digits.SHAPE),
        process=process,
      )
      fd[name, a] = metrics.random_feature_frechet(x, _digits.images())
  ratios = [fd[d, "0"] / fd["inf", "0"] for d in _DIMS]
  return dict(
    ratio_3=fd["16", "3"] / fd["inf", "3"],
    ratio_2=fd["16", "2"] / fd["inf", "2"],
    rise_64=fd["64", "3"] / fd["16", "3"],
    rise_2048=fd["2048", "3"] / fd["64", "3"],
    apart=max(ratios),
    apart_low=min(ratios),
    **{f"fd_{d}_{a}": v for (d, a), v in fd.items()},
  )
