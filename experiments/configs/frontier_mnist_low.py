"""As frontier_mnist, but from the noise level sigma / alpha = 20 downward.

The network's eps is biased by some 0.02 at high noise, which its own level of
157 turns into a brightness of the samples far outside of [-1, 1].
"""

import ml_collections

from jaxdiff.experiments.configs import frontier_mnist


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  config = frontier_mnist.get_config()
  config.max_level = 20.0
  config.solvers = (
    "default",
    "ddim",
    "dpmpp_2m",
    "unipc(order=2)",
    "ipndm(order=3)",
  )
  config.out = "runs/frontier_mnist_low"
  config.title = "DDPM U-Net on MNIST from noise level 20"
  return config
