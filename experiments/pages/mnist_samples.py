"""Samples of the public MNIST network by few calls, beside the converged ODE.

  python -m experiments.pages.mnist_samples --config.target=ddpm_mnist.npz

after a run of `experiments.frontier` with configs/frontier_mnist.py, whose
noises and reference it takes. Draws --config.out/samples.png: for each solver
and number of calls the same eight noises, the converged ODE above.
"""

import functools
import pathlib

import jax
import numpy as np

from jaxdiff import grids
from jaxdiff import solvers

from .. import frontier
from ..parts import console
from ..parts import plots

CALLS = (10, 20, 50)
SHOWN = 8


def main() -> None:
  config = console.config_like("frontier_mixture")
  config.noises = SHOWN  # a sample's noise depends on its index alone
  jax.config.update("jax_enable_x64", config.float64)
  out = pathlib.Path(config.out)
  target = frontier.load_target(config)
  process = target.process
  quadratic = functools.partial(grids.vp_quadratic, process)
  build = {
    "default": functools.partial(solvers.default, process),
    "ddim": lambda calls: solvers.ddim(process, quadratic(calls)),
    "dpmpp_2m": lambda calls: solvers.dpmpp_2m(process, quadratic(calls)),
  }
  made = {
    (name, calls): make(calls)
    for name, make in build.items()
    for calls in CALLS
  }
  sweep = frontier.Sweep(target, config, list(made.values()))
  with np.load(out / "reference.npz") as held:
    rows = {"converged ODE": held["reference"][:SHOWN]}
  for (name, calls), table in made.items():
    rows[f"{name}, {calls} calls"] = np.asarray(sweep(table))
  print(plots.image_rows(rows, out / "samples.png"))


if __name__ == "__main__":
  console.define_config_file(
    "frontier_mnist",
    "The config of the frontier's run, with the same changes.",
  )
  console.run(main)
