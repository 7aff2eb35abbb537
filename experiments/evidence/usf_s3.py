"""USF / S^3: a searched solver schedule against every fixed solver.

Exact mixtures under EDM noise from 20 to 0.02: g2 (2 dimensions, 3 components)
and g16 (16 dimensions, 10 components). The score is the rmse of the end points
to RK4 from the same noises, 256 of them in 2 dimensions and 1,024 in 16; what
is reported comes from 2,048 others. The baseline is the best of 2M, 3M, UniPC-2
and UniPC-3 on the log-SNR and the rho = 7 grid, on the noises of the report.
Every search has 1,500 true evaluations, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.search import populations
from jaxdiff.search import s3

from .report import at_most
from .report import reported

TITLE = "USF / S^3"
CLAIM = (
  "A solver schedule found by search, with its strategies chosen step by step,"
  " beats every fixed solver."
)
PAPER = "https://arxiv.org/abs/2312.07243"
SEEDS = (0, 1, 2)
BARS = (
  *(
    at_most(
      f"d2_{calls}",
      0.6,
      f"2 dimensions, {calls} calls: held-out rmse of S^3 / of the best fixed"
      " solver",
    )
    for calls in (5, 8, 10)
  ),
  at_most(
    "d2_5_times",
    0.75,
    "2 dimensions, 5 calls: held-out rmse of S^3 / of a search of the times"
    " alone",
  ),
  *(
    at_most(
      f"d16_{calls}",
      0.85,
      f"16 dimensions, {calls} calls: held-out rmse of S^3 / of the best fixed"
      " solver",
    )
    for calls in (5, 8)
  ),
  at_most(
    "evaluations",
    0.6,
    "share of the evaluations after which the guided search is as good as"
    " plain evolution at its end; mean over 5, 8 and 10 calls in 2 dimensions,"
    " 1 where it never is",
  ),
)
REPORTED = (
  reported("tau", "Kendall's tau of the predictor on unseen schedules"),
  reported("d2_5_rmse", "2 dimensions, 5 calls: held-out rmse of S^3"),
  reported("d2_5_best", "that of the best fixed solver"),
  reported("d2_5_train", "that of S^3 on the noises it was searched on"),
  reported(
    "d2_5_plain", "5 calls, plain evolution / the best fixed solver, held out"
  ),
)
LIMITS = "FID of image data sets; exact mixtures stand in for networks."

_BUDGET = 1500


def measure(seed: int) -> dict[str, float]:
  """Returns the ratios of one seed, which draws noises and search alike."""
  with jax.enable_x64(True):
    return _measure(jax.random.key(seed))


def _measure(key):
  process = processes.edm(0.02, 20.0)
  out, taus, shares = {}, [], []
  for oracle, d, noises, budgets in (
    (oracles.g2(), 2, 256, (5, 8, 10)),
    (oracles.g16(), 16, 1024, (5, 8)),
  ):
    model = oracles.exact(oracle, process)
    task = lambda index, d=d, model=model: populations.converged(
      key, model, process, (d,), index, dtype=jnp.float64
    )
    searched, held = task(noises), task(range(noises, noises + 2048))
    populations.check_apart(searched, held)
    judge = lambda tables, held=held: populations.evaluate(held, tables)
    for calls in budgets:
      best = judge(_baselines(process, calls)).min()

      def run(guided=True, searched=searched, calls=calls, **options):
        config = s3.Config(calls, **options)
        return s3.search(
          key, searched, process, config, budget=_BUDGET, guided=guided
        )

      found = run()
      rmse = judge([found.table])[0]
      out[f"d{d}_{calls}"] = rmse / best
      taus += found.tau
      if d > 2:
        continue
      plain = run(guided=False)
      reached = np.flatnonzero(found.scores <= plain.score)
      shares.append((reached[0] + 1) / _BUDGET if len(reached) else 1.0)
      if calls == 5:
        times = run(guided=False, times_only=True)
        out["d2_5_times"] = rmse / judge([times.table])[0]
        out["d2_5_plain"] = judge([plain.table])[0] / best
        out |= dict(d2_5_rmse=rmse, d2_5_best=best, d2_5_train=found.score)
  return out | dict(tau=np.nanmean(taus), evaluations=np.mean(shares))


def _baselines(process, calls):
  return [
    solvers.from_spec(name)(process, grid(process, calls))
    for name in ("dpmpp_2m", "dpmpp_3m", "unipc(order=2)", "unipc(order=3)")
    for grid in (grids.log_snr, grids.karras)
  ]
