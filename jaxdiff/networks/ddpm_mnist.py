r"""The small U-Net of a public DDPM on MNIST.

Its time embedding is a table of 1,000 rows, of which the even ones are sin(w_j
t) and the odd ones are no neighbours of them (a slip in the public code). The
sines alone are a smooth function of time: they are computed here, so that the
network can be asked at any time, and agree with the table at even steps. A
block is

  h = silu(conv2(silu(conv1(layer_norm(x)))))

with the layer norm over channels, height and width (the last block of all has
none); every stage first adds an embedding of the step to all pixels. Images are
28x28x1 in [-1, 1].

Reference: B. Pulfer, "PapersReimplementations" (MIT), DDPM; trained as Ho et
al. (2020), https://arxiv.org/abs/2006.11239, 1,000 steps, beta 1e-4 to 0.02,
predicting eps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import ArrayLike

SHAPE = (28, 28, 1)
_EMBEDDING = 100
_PLAIN = "b_out_2"  # the only block without its layer norm
STAGES = {  # channels that enter, and those of the three blocks
  "b1": (1, (10, 10, 10)),
  "b2": (10, (20, 20, 20)),
  "b3": (20, (40, 40, 40)),
  "b_mid": (40, (20, 20, 40)),
  "b4": (80, (40, 20, 20)),
  "b5": (40, (20, 10, 10)),
  "b_out": (20, (10, 10, 10)),
}


class DDPMMnist(nn.Module):
  """The network; c f[batch] is the step 0..999, fractions allowed."""

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns eps like x, f[batch, 28, 28, 1].

    Raises:
      ValueError: for images of another shape, or a label: it has no classes.
    """
    if x.shape[1:] != SHAPE:
      raise ValueError(
        f"this network takes MNIST images [batch, 28, 28, 1], got {x.shape}"
      )
    if label is not None:
      raise ValueError("a label was given to a network without classes")
    emb = _steps(c).astype(x.dtype)
    conv = lambda features, size, stride, pad, name: nn.Conv(
      features, (size, size), stride, pad, name=name
    )
    up = lambda features, size, stride, pad, name: nn.Conv(
      features,
      (size, size),
      padding=size - 1 - pad,
      input_dilation=stride,
      name=name,
    )
    stage = lambda name, *parts: _stage(name, jnp.concatenate(parts, -1), emb)
    out1 = stage("b1", x)
    out2 = stage("b2", conv(10, 4, 2, 1, "down1")(out1))
    out3 = stage("b3", conv(20, 4, 2, 1, "down2")(out2))
    h = nn.silu(conv(40, 2, 1, 0, "down3_0")(out3))
    h = stage("b_mid", conv(40, 4, 2, 1, "down3_2")(h))
    h = nn.silu(up(40, 4, 2, 1, "up1_0")(h))
    h = up(40, 2, 1, 0, "up1_2")(h)
    h = stage("b4", out3, h)
    h = up(20, 4, 2, 1, "up2")(h)
    h = stage("b5", out2, h)
    h = up(10, 4, 2, 1, "up3")(h)
    h = stage("b_out", out1, h)
    return conv(1, 3, 1, 1, "conv_out")(h)


def _steps(c: jax.Array) -> jax.Array:
  """Returns sin(w_j c), w_j = 1e-4^(2j / 100), [batch, 100]."""
  w = 1e-4 ** (2 * np.arange(_EMBEDDING) / _EMBEDDING)
  return jnp.sin(c[:, None] * jnp.asarray(w, c.dtype))


def _stage(name, h, emb):
  channels, widths = STAGES[name]
  te = "te" + name[1:]
  shift = nn.Dense(channels, name=f"{te}_0")(emb)
  shift = nn.Dense(channels, name=f"{te}_2")(nn.silu(shift))
  h = h + shift[:, None, None, :]
  for k, width in enumerate(widths):
    block = f"{name}_{k}"
    if block != _PLAIN:
      h = nn.LayerNorm(
        epsilon=1e-5,
        reduction_axes=(-3, -2, -1),
        feature_axes=(-3, -2, -1),
        name=f"{block}_ln",
      )(h)
    for i in (1, 2):
      h = nn.silu(nn.Conv(width, (3, 3), name=f"{block}_conv{i}")(h))
  return h


def mnist_unet(num_classes: int = 0) -> DDPMMnist:
  """Returns the network by the call that all of `NETWORKS` have in common.

  Raises:
    ValueError: if it is to have classes.
  """
  if num_classes:
    raise ValueError(
      f"this network has no classes, but num_classes = {num_classes} was asked"
      " for; use another network, such as 'unet'"
    )
  return DDPMMnist()
