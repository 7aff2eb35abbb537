"""Solvers that are learned: gradient descent on the numbers of a table."""

from jaxdiff.learning import v3_statistics
from jaxdiff.learning.amed import amed
from jaxdiff.learning.bns import bns
from jaxdiff.learning.descent import descend
from jaxdiff.learning.descent import Progress
from jaxdiff.learning.descent import Settings
from jaxdiff.learning.ld3 import ld3
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
  "descend",
  "errors",
  "ld3",
  "split",
  "teach",
  "teacher",
  "v3_statistics",
]
