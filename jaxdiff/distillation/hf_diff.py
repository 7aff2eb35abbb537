r"""HF-Diff: SinSR with two losses on a restored image's details.

Two terms compare the student's one-step image with the true one, beside those
of `sinsr`:

  loss = L_SinSR + hf sum_l lambda_l mean |Phi_l(x) - Phi_l(g)|^2
                 + js E JS(softmax(e(x) / T), softmax(e(g) / T)),

Phi_l the details of level l of a frozen invertible network, whose likelihood
has whitened them (`networks.Invertible`, fitted by `fit_details`): unlike the
features of a classifier they lose nothing, and a fine detail that is rare
counts as much as a coarse one. e is a frozen embedding of images, and JS(p, q)
= KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2, between 0 and log 2.

A squared error of features of an image from random noise is least for their
mean given y: it lifts the PSNR and takes energy from the details. With compare=
"truth" the images are those of the noise that the student finds for the true
ones, whose details are then to be restored and not averaged.

With an untrained network, the wavelets, and the low band among the features,
the first term is |x - g|^2. Reference: Sami et al. (2024),
https://arxiv.org/abs/2411.13548. Their weights are not known; these defaults
are ours, and the features' scale is that of the likelihood.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import densities
from jaxdiff import networks
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.sinsr import sinsr
from jaxdiff.networks import invertible
from jaxdiff.types import Model
from jaxdiff.types import PyTree


@checks.door
def hf_diff(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  features: Callable[[jax.Array], Sequence[jax.Array]] | None,
  embed: Callable[[jax.Array], jax.Array] | None = None,
  hf: float = 1.0,
  weights: Sequence[float] | None = None,
  js: float = 0.1,
  temperature: float = 1.0,
  **options: Any,
) -> Method:
  """Trains a one-step restorer by SinSR's loss and two losses of details.

  With both weights 0 it is `sinsr`.

  Args:
    teacher: as in `sinsr`.
    student: as in `sinsr`.
    optimizer: any optax transformation.
    features: images -> their feature maps; `Details`, or any others; None goes
      without the first term, hf=0.
    embed: images -> f[batch, d]; None goes without the second term.
    hf: weight of the features.
    weights: lambda_l of every feature map; 1 by default.
    js: weight of the divergence.
    temperature: temperature of the softmax; embeddings should have standard
      deviation 1.
    **options: options of `sinsr`.

  Raises:
    ValueError: for a weight of features that are not given.
  """
  if hf and features is None:
    raise ValueError(
      f"hf={hf} weighs the features, but features=None gives none; give"
      " features=Details(...), or hf=0"
    )

  def perceptual(nets, x, truth):
    value, said = 0.0, {}
    if hf:
      said["hf"] = feature_loss(nets["features"], x, truth, weights)
      value = value + hf * said["hf"]
    if js and embed is not None:
      one, other = (
        _embedded(nets["embed"], v) / temperature for v in (x, truth)
      )
      said["js"] = jnp.mean(jensen_shannon(one, other))
      value = value + js * said["js"]
    return value, said

  further = bool(hf) or bool(js and embed is not None)
  return sinsr(
    teacher,
    student,
    optimizer=optimizer,
    perceptual=perceptual if further else None,
    frozen={"features": features, "embed": embed} if further else None,
    **options,
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Details:
  """Feature maps of images: the details of an invertible network; a pytree.

  Attributes:
    params: parameters of the network.
    network: the network.
  """

  params: PyTree
  network: networks.Invertible = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the details of every level, the finest first."""
    return self.bands(x)[0].details

  def bands(self, x: jax.Array) -> tuple[networks.Bands, jax.Array]:
    """Returns (all bands, log |det| f[batch])."""
    return self.network.apply({"params": self.params}, x)

  def image(self, bands: networks.Bands) -> jax.Array:
    """Returns the image of bands."""
    return self.network.apply({"params": self.params}, bands, inverse=True)[0]

  def log_prob(self, x: jax.Array) -> jax.Array:
    """Returns log p(x), f[batch]."""
    return invertible.normal_log_prob(*self.bands(x))


@checks.door
def fit_details(
  key: jax.Array,
  x: jax.Array,
  *,
  levels: int = 2,
  couplings: int = 4,
  width: int = 32,
  steps: int = 500,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  noise: float = 0.01,
) -> Details:
  """Returns the details of an invertible network of most likely images x.

  Args:
    key: PRNG key.
    x: f[n, height, width, channels], training images.
    levels: how often the resolution is halved.
    couplings: couplings of every level; 0 is the wavelet transform.
    width: width of the networks in them.
    steps: steps of Adam; 0 leaves the wavelet transform.
    batch_size: images a step.
    learning_rate: its peak.
    noise: standard deviation that is added to x: where images are flat, their
      likelihood has no bound.
  """
  network = networks.Invertible(levels, couplings, width)
  params = jax.jit(network.init)(jax.random.fold_in(key, steps), x[:1])
  start = Details(params.get("params", {}), network=network)
  if not (steps and couplings):
    return start
  log_prob = lambda p, x: dataclasses.replace(start, params=p).log_prob(x)
  size = tree.sample_size(x)
  x = x + noise * tree.normal(jax.random.fold_in(key, steps + 1), x)
  params = densities.maximum_likelihood(
    key,
    lambda p, x: log_prob(p, x) / size,
    start.params,
    x,
    steps=steps,
    batch_size=batch_size,
    learning_rate=learning_rate,
  )
  return dataclasses.replace(start, params=params)


@checks.door
def feature_loss(
  features: Callable[[jax.Array], Sequence[jax.Array]],
  x: jax.Array,
  truth: jax.Array,
  weights: Sequence[float] | None = None,
) -> jax.Array:
  """Returns sum_l lambda_l mean |Phi_l(x) - Phi_l(truth)|^2, f[].

  Raises:
    ValueError: if there is not one weight for each feature map.
  """
  ours, theirs = features(x), features(truth)
  weights = (1.0,) * len(ours) if weights is None else tuple(weights)
  if len(weights) != len(ours):
    raise ValueError(
      f"there are {len(ours)} feature maps, but {len(weights)} weights; give"
      " each its own, the finest first"
    )
  square = lambda a, b: jnp.mean(jnp.square(a - b))
  terms = zip(weights, ours, theirs, strict=True)
  return sum(w * square(a, b) for w, a, b in terms)


@checks.door
def jensen_shannon(one: jax.Array, other: jax.Array) -> jax.Array:
  """Returns the divergence of the laws softmax(one), softmax(other), f[batch].

  Args:
    one: logits f[batch, d]; log-probabilities are logits too.
    other: logits like `one`.
  """
  wide = lambda x: x.astype(tree.compute_dtype(x.dtype))
  log_p, log_q = (jax.nn.log_softmax(wide(x)) for x in (one, other))
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  kl = lambda log: jnp.sum(jnp.exp(log) * (log - log_m), axis=-1)
  return 0.5 * (kl(log_p) + kl(log_q))


def _embedded(embed, x):
  e = embed(x)
  if e.ndim != 2 or len(e) != len(x):
    raise ValueError(
      "an embedding returns one vector for each image, shape"
      f" ({len(x)}, d), got {e.shape}; pool over the positions"
    )
  return e
