"""A small zoo: trained models that come with the library.

  model = jaxdiff.zoo.load("digits")

`names()` lists them, `describe(name)` tells what one is, how it was trained and
how good it is; README.md beside this file has it all as a table.
`digits_denoiser` is trained on first use and kept in a cache.
"""

from jaxdiff.zoo.digits import digits_denoiser
from jaxdiff.zoo.files import Card
from jaxdiff.zoo.files import describe
from jaxdiff.zoo.files import load
from jaxdiff.zoo.files import names
from jaxdiff.zoo.files import write

__all__ = [
  "Card",
  "describe",
  "digits_denoiser",
  "load",
  "names",
  "write",
]
