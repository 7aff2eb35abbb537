"""Pickles and files of torch as data: nothing in them is ever run."""

from jaxdiff.pickles.files import load
from jaxdiff.pickles.files import loads
from jaxdiff.pickles.files import state_dict
from jaxdiff.pickles.machine import Forbidden
from jaxdiff.pickles.machine import Record

__all__ = ["Forbidden", "Record", "load", "loads", "state_dict"]
