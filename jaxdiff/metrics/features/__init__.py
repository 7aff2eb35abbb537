"""Features of images, in which distances between sets of them are measured.

`features.load(name)` returns an `Extractor`, `features.extract(extractor,
images)` runs it over any number of images. Every distance takes any features
f[n, d]: those of a function of your own serve as well.
"""

from jaxdiff.metrics.features.extractor import extract
from jaxdiff.metrics.features.extractor import Extractor
from jaxdiff.metrics.features.extractor import EXTRACTORS
from jaxdiff.metrics.features.extractor import load

__all__ = ["EXTRACTORS", "Extractor", "extract", "load"]
