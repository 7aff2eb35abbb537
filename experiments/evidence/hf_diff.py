"""One-step super-resolution of photograph patches, with and without details.

Grey patches 24 x 24 of a photograph of a temple, the more detailed half of
them, other columns to test; y is made by the means of 3 x 3 pixels with noise
.02 (of a range of 2) and bicubic enlargement.
ResShift with kappa = .5 on the coefficients of one orthonormal Haar step, 12 x
12 x 4: the same process as in pixels, at a quarter of the cost; `decode` goes
back. A U-Net of width 24 on one level, 1200 updates of 32 for the teacher, 300
of 16 for every student. The invertible network: 2 levels of 4 couplings of
width 16, 300 steps of likelihood. The embedding: log energies of 12 Gabor
filters in quarters of the patch, standardised.

Weights .002 and .3, at images of random noise. "details" is the invertible
network alone with ten times that weight; "truth" compares the images that come
from the true ones' own noise instead.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import training

from .report import at_most
from .report import reported

TITLE = "HF-Diff"
CLAIM = (
  "A loss on the details of an invertible network, and Jensen-Shannon's"
  " divergence between embeddings, give SinSR's one-step images the high"
  " frequencies that they lack, better than features of a convolutional network"
  " do."
)
PAPER = "https://arxiv.org/abs/2411.13548"
SEEDS = (0, 1, 2)
BARS = (
  at_most(
    "bands",
    0.75,
    "error of the log energy of the two highest wavelet bands, over SinSR's",
  ),
  at_most("psnr_lost", 0.4, "PSNR of SinSR less that of HF-Diff, dB"),
  at_most(
    "bands_over_random",
    1.0,
    "the error over that with features of random convolutions in the place of"
    " the invertible network's",
  ),
  at_most(
    "one_step", 0.5, "PSNR of the teacher at 8 calls less SinSR's at 1, dB"
  ),
)
_NAMES = ("teacher", "sinsr", "random", "details", "truth", "hf_diff")
REPORTED = tuple(
  reported(f"{m}_{name}", f"{what}, {name}")
  for m, what in (
    ("psnr", "PSNR in dB"),
    ("bands", "error of the log energy of the two highest bands"),
    ("energy", "mean log energy of these bands less the truth's"),
    ("gradients", "mean cosine of the images' gradients to the truth's"),
  )
  for name in ("bicubic", *_NAMES)
)
LIMITS = (
  "DINO's embedding and networks trained on ImageNet; CLIPIQA. Students are of"
  " 10 000 parameters and seconds of training, and a 24 x 24 patch has few"
  " details to restore."
)

_PROCESS = processes.resshift(kappa=0.5)
_SIDE, _CALLS, _TEST = 24, 8, 512
_TEACHER, _STUDENT = 1200, 300
_HF, _JS = 0.002, 0.3


@dataclasses.dataclass(frozen=True)
class _Data:
  """Residuals of coefficients to train on; test patches and their y."""

  train: dict
  clean: np.ndarray
  test: np.ndarray
  degraded: np.ndarray


def _data(seed: int) -> _Data:
  key = jax.random.key(seed)

  def pairs(split, count, fold):
    drawn = data.patches(_SIDE, split=split, count=4 * count, seed=seed)
    x = drawn["image"][drawn["label"] == 0].mean(-1, keepdims=True)
    # the more detailed half of the temple's patches: the rest are flat
    energy = np.asarray(_log_energies(jnp.asarray(x))).mean(1)
    most = np.random.default_rng(seed).permutation(np.argsort(-energy)[:count])
    x = jnp.asarray(x[most])
    low = data.degrade(jax.random.fold_in(key, fold), x, factor=3, noise=0.02)
    return x, data.upsample(low, (_SIDE, _SIDE))

  x, y = pairs("train", 4096, 0)
  batch = distillation.residuals(
    {"image": networks.haar(x), "degraded": networks.haar(y)}
  )
  train = {name: np.asarray(v) for name, v in batch.items()}
  test, degraded = pairs("test", _TEST, 1)
  return _Data(train, np.asarray(x), np.asarray(test), np.asarray(degraded))


def _decode(r: jax.Array, batch: dict) -> jax.Array:
  """Returns the images of residuals of coefficients."""
  return networks.unhaar(batch["label"] + r)


def _teacher(seed: int, given: _Data) -> denoisers.Denoiser:
  module = networks.make(
    "beside",
    network={
      "name": "unet",
      "channels": 24,
      "multipliers": [1],
      "blocks": 1,
      "attention": [],
      "embedding": 2,
    },
    label_dim=4,
  )
  x = jnp.zeros((1, 12, 12, 4))
  params = jax.jit(module.init)(jax.random.key(seed), x, jnp.zeros(1))
  model = denoisers.from_linen(
    module,
    params["params"],
    _PROCESS,
    sigma_data=float(given.train["image"].std()),
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, _TEACHER))
  loss = losses.denoising(
    model, label_dropout=0.0, times=losses.times.log_normal(_PROCESS, -1.5, 1.5)
  )
  state = training.train(
    training.init_state(jax.random.key(seed), model.params, optimizer),
    training.make_update(loss, optimizer, ema=0.99),
    data.batches(given.train, 32, seed=seed),
    steps=_TEACHER,
    progress=False,
  )
  return dataclasses.replace(model, params=state.ema_params)


def _student(
  seed, teacher, given, features, embed, hf, js, compare="noise", steps=_STUDENT
):
  method = distillation.hf_diff(
    teacher,
    teacher,
    optimizer=optax.adam(optax.cosine_decay_schedule(5e-4, steps)),
    features=features,
    embed=embed,
    hf=hf,
    js=js,
    steps=_CALLS,
    decode=_decode,
    compare=compare,
    ema=0.98,
  )
  state = training.train(
    distillation.init_state(jax.random.key(seed), method),
    distillation.make_update(method),
    data.batches(given.train, 16, seed=seed),
    steps=steps,
    progress=False,
  )
  return method.finished(state)


def _restored(seed, model, given, calls=1):
  y = networks.haar(jnp.asarray(given.degraded))
  grid = grids.power_log(_PROCESS, calls, to_zero=True)
  key = jax.random.fold_in(jax.random.key(seed), 9)
  return networks.unhaar(distillation.restore(key, model, y, grid))


def _convolve(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _pooled(x, side):
  return data.downsample(x, side)


def _random_features(weights, scales, x):
  """Returns two maps of random convolutions, of unit variance on the data."""
  one = jax.nn.relu(_convolve(x, weights[0]))
  two = jax.nn.relu(_convolve(_pooled(one, 2), weights[1]))
  return one / scales[0], two / scales[1]


def _random_network(key, clean):
  shapes = ((3, 3, 1, 16), (3, 3, 16, 16))
  weights = [
    jax.random.normal(jax.random.fold_in(key, i), s) / np.sqrt(9 * s[2])
    for i, s in enumerate(shapes)
  ]
  scales = [jnp.std(h) for h in _random_features(weights, (1.0, 1.0), clean)]
  return jax.tree_util.Partial(_random_features, weights, scales)


def _energies(bank, mean, std, x):
  """Returns standardised log energies in quarters, f[batch, 4 filters]."""
  square = jnp.square(_convolve(x, bank))
  energy = square[..., ::2] + square[..., 1::2]
  log = jnp.log(1e-4 + _pooled(energy, x.shape[1] // 2))
  return (log.reshape(len(x), -1) - mean) / std


def _gabor(clean):
  """Returns the embedding: 3 wavelengths, 4 angles."""
  bank = []
  place = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"))
  for wavelength in (2.5, 4.0, 6.0):
    window = np.exp(-0.5 * (place**2).sum(0) / (0.5 * wavelength) ** 2)
    for angle in np.arange(4) * np.pi / 4:
      along = np.cos(angle) * place[0] + np.sin(angle) * place[1]
      wave = window * np.exp(2j * np.pi * along / wavelength)
      wave -= window * wave.sum() / window.sum()  # no answer to a constant
      bank += [wave.real, wave.imag]
  bank = jnp.asarray(np.stack(bank, -1)[:, :, None], jnp.float32)
  log = _energies(bank, 0.0, 1.0, clean)
  return jax.tree_util.Partial(_energies, bank, log.mean(0), log.std(0))


def _log_energies(x):
  """Returns the log energies of the two highest bands, f[batch, 2]."""
  first = networks.haar(x)
  second = networks.haar(first[..., :1])
  energy = lambda h: jnp.mean(h[..., 1:] ** 2, axis=(1, 2, 3))
  return jnp.log(1e-6 + jnp.stack([energy(first), energy(second)], -1))


def _quality(x, truth):
  apart = _log_energies(x) - _log_energies(truth)
  error = jnp.mean((x - truth) ** 2, axis=(1, 2, 3))
  slopes = lambda v: jnp.concatenate(
    [jnp.diff(v, axis=a).reshape(len(v), -1) for a in (1, 2)], axis=1
  )
  a, b = slopes(x), slopes(truth)
  norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
  return dict(
    psnr=float(jnp.mean(10.0 * jnp.log10(4.0 / error))),
    bands=float(jnp.mean(jnp.abs(apart))),
    energy=float(jnp.mean(apart)),
    gradients=float(jnp.mean(jnp.sum(a * b, axis=1) / norms)),
  )


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one teacher and its students."""
  given = _data(seed)
  key = jax.random.fold_in(jax.random.key(seed), 7)
  clean = jnp.asarray(given.clean[:512])
  teacher = _teacher(seed, given)
  details = distillation.fit_details(
    key, jnp.asarray(given.clean), width=16, steps=300
  )
  random, embed = _random_network(key, clean), _gabor(clean)

  def student(features, hf, js, compare):
    model = _student(seed, teacher, given, features, embed, hf, js, compare)
    return _restored(seed, model, given)

  found = dict(
    bicubic=jnp.asarray(given.degraded),
    teacher=_restored(seed, teacher, given, _CALLS),
    sinsr=student(details, 0.0, 0.0, "noise"),
    random=student(random, _HF, _JS, "noise"),
    details=student(details, 10 * _HF, 0.0, "noise"),
    truth=student(details, 10 * _HF, 0.0, "truth"),
    hf_diff=student(details, _HF, _JS, "noise"),
  )
  quality = {k: _quality(v, jnp.asarray(given.test)) for k, v in found.items()}
  ours, plain = quality["hf_diff"], quality["sinsr"]
  return dict(
    bands=ours["bands"] / plain["bands"],
    psnr_lost=plain["psnr"] - ours["psnr"],
    bands_over_random=ours["bands"] / quality["random"]["bands"],
    one_step=quality["teacher"]["psnr"] - plain["psnr"],
    **{f"{m}_{k}": v for k, q in quality.items() for m, v in q.items()},
  )
