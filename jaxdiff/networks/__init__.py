"""Networks in Flax Linen: network(x, c, label) is shaped like x."""
from jaxdiff.networks.mlp import MLP, ResidualMLP
from jaxdiff.networks.unet import UNet
