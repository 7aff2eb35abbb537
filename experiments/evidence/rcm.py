"""Consistency in continuous time, with and without the scores of its samples.

25 modes in the plane with the exact teacher; an MLP 3 x 128 that has imitated it
begins as student and as fake score. sCM 6000 updates, rCM 3000 with 3 steps of
the fake score each, batches of 512. The derivative is then scaled by 0.9, which
stands for one of low precision: sCM 4000 updates, rCM 2000.
"""

from experiments.evidence.report import at_least
from experiments.evidence.report import at_most
from experiments.evidence.report import reported

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
