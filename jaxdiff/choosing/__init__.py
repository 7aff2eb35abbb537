"""The right table for a model, and what that takes to know.

choose          the table that a measurement on the model finds best
candidates      the tables that it tries
cost            how many network calls that is
width           standard deviation of data along their widest direction
sampled_width   the same from a model alone
"""

from jaxdiff.choosing.candidates import candidates
from jaxdiff.choosing.candidates import COUNT
from jaxdiff.choosing.measured import choose
from jaxdiff.choosing.measured import cost
from jaxdiff.choosing.measured import Measured
from jaxdiff.choosing.measured import Report
from jaxdiff.choosing.widths import sampled_width
from jaxdiff.choosing.widths import width

__all__ = [
  "COUNT",
  "Measured",
  "Report",
  "candidates",
  "choose",
  "cost",
  "sampled_width",
  "width",
]
