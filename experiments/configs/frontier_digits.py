"""The frontier on a trained network: the digits U-Net of `experiments.train`.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=runs/digits
  python -m experiments.frontier \
      --config=experiments/configs/frontier_digits.py

Two minutes on two cores, in float32, half of them for `choose`. Expect it at or
near the lowest error at each number of calls and the default beside it from 8
calls on, with an rmse near 0.01 at 10.
"""

import ml_collections

from jaxdiff.experiments.configs import frontier_mixture


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  config = frontier_mixture.get_config()
  config.target = "runs/digits"
  config.solvers = (*config.solvers, "default", "choose")
  config.calls = (3, 5, 6, 8, 10, 12, 15, 20, 30)
  config.grids = ("vp_quadratic",)
  config.noises = 128
  config.reference_steps = 150
  config.float64 = False
  config.out = "runs/frontier_digits"
  config.title = "U-Net trained on digits, EDM noise"
  return config
