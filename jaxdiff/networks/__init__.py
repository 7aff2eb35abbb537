"""Networks in Flax Linen, which know nothing of diffusion.

Every one is called as network(x, c, label) -> like x, with x [batch, ...], the
time condition c f[batch] and label i32[batch] or None. `denoisers.from_linen`
makes a model of it. (`NoiseClassifier` is no denoiser: logits of x alone.)
"""

from jaxdiff.networks import ddpm_mnist
from jaxdiff.networks import edm2
from jaxdiff.networks.adm import ADM
from jaxdiff.networks.attention import attention_with_jvp
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.dit import SIZES as DIT_SIZES
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.embeddings import Condition
from jaxdiff.networks.embeddings import fourier
from jaxdiff.networks.image_condition import Beside
from jaxdiff.networks.invertible import Bands
from jaxdiff.networks.invertible import haar
from jaxdiff.networks.invertible import Invertible
from jaxdiff.networks.invertible import unhaar
from jaxdiff.networks.layer_dropping import LayerDropped
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mlp import ResidualMLP
from jaxdiff.networks.noise_classifier import NoiseClassifier
from jaxdiff.networks.potential import Potential
from jaxdiff.networks.presets import digits_mlp
from jaxdiff.networks.presets import digits_unet
from jaxdiff.networks.presets import make
from jaxdiff.networks.presets import NETWORKS
from jaxdiff.networks.song_unet import SongUNet
from jaxdiff.networks.stacking import stack_blocks
from jaxdiff.networks.stacking import unstack_blocks
from jaxdiff.networks.time_and_label import STEPS
from jaxdiff.networks.tokens import TokenMLP
from jaxdiff.networks.tokens import TokenTransformer
from jaxdiff.networks.transitions import TransitionNetwork
from jaxdiff.networks.unet import UNet
from jaxdiff.networks.unet2d import UNet2D
from jaxdiff.networks.uvit import UViT

__all__ = [
  "ADM",
  "Bands",
  "Beside",
  "Condition",
  "EDM2",
  "DIT_SIZES",
  "DiT",
  "LayerDropped",
  "Invertible",
  "MLP",
  "NETWORKS",
  "NoiseClassifier",
  "Potential",
  "ResidualMLP",
  "SongUNet",
  "STEPS",
  "TokenMLP",
  "TokenTransformer",
  "TransitionNetwork",
  "UNet",
  "UNet2D",
  "UViT",
  "attention_with_jvp",
  "ddpm_mnist",
  "digits_mlp",
  "digits_unet",
  "edm2",
  "fourier",
  "haar",
  "make",
  "stack_blocks",
  "unhaar",
  "unstack_blocks",
]
