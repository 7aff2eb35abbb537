"""Networks in Flax Linen, which know nothing of diffusion.

Every one is called as network(x, c, label) -> like x, with x [batch, ...], the
time condition c f[batch] and label i32[batch] or None. `denoisers.from_linen`
makes a model of it. (`NoiseClassifier` is no denoiser: logits of x alone.)
"""

from jaxdiff.networks import ddpm_mnist
from jaxdiff.networks.embeddings import Condition
from jaxdiff.networks.embeddings import fourier
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mlp import ResidualMLP
from jaxdiff.networks.noise_classifier import NoiseClassifier
from jaxdiff.networks.potential import Potential
from jaxdiff.networks.presets import digits_mlp
from jaxdiff.networks.presets import digits_unet
from jaxdiff.networks.presets import make
from jaxdiff.networks.presets import NETWORKS
from jaxdiff.networks.unet import UNet

__all__ = [
  "Condition",
  "MLP",
  "NETWORKS",
  "NoiseClassifier",
  "Potential",
  "ResidualMLP",
  "UNet",
  "ddpm_mnist",
  "digits_mlp",
  "digits_unet",
  "fourier",
  "make",
]
