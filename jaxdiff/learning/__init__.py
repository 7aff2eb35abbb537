"""Solvers that are learned: gradient descent on the numbers of a table."""

from jaxdiff.learning import v3_statistics
from jaxdiff.learning.amed import amed
from jaxdiff.learning.bns import bns
from jaxdiff.learning.dc_solver import dc_solver
from jaxdiff.learning.descent import descend
from jaxdiff.learning.descent import Progress
from jaxdiff.learning.descent import Settings
from jaxdiff.learning.dyweight import dyweight
from jaxdiff.learning.epd import epd
from jaxdiff.learning.ld3 import ld3
from jaxdiff.learning.neural_solver import neural_solver
from jaxdiff.learning.teacher import errors
from jaxdiff.learning.teacher import Lessons
from jaxdiff.learning.teacher import split
from jaxdiff.learning.teacher import teach
from jaxdiff.learning.teacher import teacher

__all__ = [
  "Lessons",
  "Progress",
  "Settings",
  "amed",
  "bns",
  "dc_solver",
  "descend",
  "dyweight",
  "epd",
  "errors",
  "ld3",
  "neural_solver",
  "split",
  "teach",
  "teacher",
  "v3_statistics",
]
