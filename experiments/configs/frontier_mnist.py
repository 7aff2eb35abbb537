"""The frontier on a public DDPM U-Net for MNIST that was trained elsewhere.

Take the weights from BrianPulfer/PapersReimplementations on GitHub, saved as an
npz of the torch arrays under their names, and MNIST as an npz with x_test:

  python -m experiments.frontier \
      --config=experiments/configs/frontier_mnist.py \
      --config.target=ddpm_mnist.npz --config.data=npz:mnist.npz

About ten minutes on one core, in float32.
"""

import ml_collections

from jaxdiff.experiments.configs import frontier_mixture


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  config = frontier_mixture.get_config()
  config.target = "ddpm_mnist.npz"
  config.solvers = (
    "default",
    "ddim",
    "heun",
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc(order=2)",
    "ipndm(order=3)",
  )
  config.grids = ("vp_quadratic", "karras", "angular")
  config.calls = (5, 8, 10, 15, 20, 30, 50)
  config.noises = 64
  config.reference_steps = 125
  config.float64 = False
  config.out = "runs/frontier_mnist"
  config.title = "DDPM U-Net on MNIST, trained elsewhere"
  return config
