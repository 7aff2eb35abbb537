"""Searching for solvers: populations of tables, judged on the same noises."""

from jaxdiff.search import fitness
from jaxdiff.search import gits
from jaxdiff.search import populations
from jaxdiff.search import predictor
from jaxdiff.search import s3
from jaxdiff.search import usf

__all__ = ["fitness", "gits", "populations", "predictor", "s3", "usf"]
