"""Searching for solvers: populations of tables, judged on the same noises.

populations     a population in one compiled program
fitness         what it is judged by
usf, s3         solver schedules, and a predictor-guided search over them
autodiffusion   time steps and skipped blocks (`skipping`), by evolution
gits            grids, by dynamic programming
"""

from jaxdiff.search import autodiffusion
from jaxdiff.search import fitness
from jaxdiff.search import gits
from jaxdiff.search import populations
from jaxdiff.search import predictor
from jaxdiff.search import s3
from jaxdiff.search import skipping
from jaxdiff.search import usf

__all__ = [
  "autodiffusion",
  "fitness",
  "gits",
  "populations",
  "predictor",
  "s3",
  "skipping",
  "usf",
]
