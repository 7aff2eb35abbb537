"""The scripts of experiments/, under a name that is nobody else's.

A checkout has them in `experiments/`, beside `jaxdiff/`, and this file points
there. An installed package has them here, in place of this file: setup.py maps
one folder to the other, so that a wheel claims the name `jaxdiff` alone.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "experiments")]
