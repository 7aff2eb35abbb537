"""The frontier on a trained network: the digits U-Net of `experiments.train`.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=runs/digits
  python -m experiments.frontier \
      --config=experiments/configs/frontier_digits.py

About a minute on two cores, in float32. Expect default first at 3 and 4
calls, unipc(order=2) at 5 and 6, and ipndm(order=3) at 8 to 15, with a median
error near 0.01 at 10. The default's is 0.06 at 5 and 0.04 at 10: this network
is poor where its grid saves calls.
"""

import ml_collections

from jaxdiff.experiments.configs import frontier_mixture


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  config = frontier_mixture.get_config()
  config.target = "runs/digits"
  config.solvers = (*config.solvers, "default")
  config.grids = ("vp_quadratic",)
  config.noises = 128
  config.reference_steps = 150
  config.float64 = False
  config.out = "runs/frontier_digits"
  config.title = "U-Net trained on digits, EDM noise"
  return config
