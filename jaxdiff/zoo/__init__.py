"""A small zoo: trained models that come with the library.

  model = jaxdiff.zoo.load("digits")

`names()` lists them, `describe(name)` tells what one is, how it was trained and
how good it is; README.md beside this file has it all as a table.
"""

from jaxdiff.zoo.files import Card
from jaxdiff.zoo.files import describe
from jaxdiff.zoo.files import load
from jaxdiff.zoo.files import names
from jaxdiff.zoo.files import write

__all__ = ["Card", "describe", "load", "names", "write"]
