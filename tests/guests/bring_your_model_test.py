"""Every line of docs/bring-your-model.md, run on a network of its convention.

The data are Gaussian, so that the answer to every noisy x is known: a tiny
network makes it in its own convention, by formulas written out here, and the
page's line must turn it back into the exact (x0, eps).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdiff as jd
from tests import ROOT

PAGE = ROOT / "docs" / "bring-your-model.md"
TEXT = PAGE.read_text()
ROWS = dict(re.findall(r"^\| (.+?) \| `(model = .+?)` \|$", TEXT, re.M))

N = 1000
BETAS = np.linspace(1e-4, 0.02, N)
MEAN, VARIANCE = np.asarray([0.3, -0.4]), 0.09
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 2))
LABELS = np.asarray([0, 2, 1, 1])
VECTORS = RNG.normal(size=(4, 5))
SCALES = np.asarray([0.0, 1.0, 2.0, -1.0])
EDM, VP, FLOW = jd.edm(), jd.vp_linear(), jd.rectified_flow()
COSINE = jd.vp_cosine()
DDPM = jd.processes.vp_discrete(BETAS)
EULER = jd.processes.vp_discrete(BETAS, interpolation="noise_level")
RESCALED = jd.processes.vp_discrete(jd.processes.zero_terminal_snr(BETAS))


def exact(process, x, t, mean=MEAN):
  """E[x0 | x] and E[eps | x] of N(mean, 0.09), t scalar or [batch]."""
  column = lambda v: jnp.reshape(v, jnp.shape(v) + (1,) * (x.ndim - 1))
  t = jnp.asarray(t, x.dtype)
  t = t if t.ndim == 0 else column(t)
  a, s = process.alpha(t), process.sigma(t)
  total = a**2 * VARIANCE + s**2
  x0 = mean + a * VARIANCE / total * (x - a * mean)
  return x0, s / total * (x - a * mean), a, s


class Row(NamedTuple):
  """A network as others would have trained it.

  Attributes:
    process: that it was trained under, in our time.
    back: from what it is told to our t.
    out: (x0, eps, alpha, sigma, t) -> its output.
    wrap: of the network(x, c), what else it does to inputs and outputs.
  """

  process: Any
  back: Callable
  out: Callable
  wrap: Callable = lambda f: lambda params, x, c: f(x, c)


same = lambda c: c
clean = lambda x0, eps, a, s, t: x0
noise = lambda x0, eps, a, s, t: eps
straight = lambda x0, eps, a, s, t: eps - x0
towards = lambda x0, eps, a, s, t: x0 - eps
step = lambda c: (c + 1) / N
whole = lambda c: jnp.where(c == jnp.round(c), step(c), jnp.nan)


def curved(sign):
  """d/dt (cos x0 + sin eps), and its negative."""
  half = np.pi / 2
  return lambda x0, eps, a, s, t: sign * half * (a * eps - s * x0)


def unscaled(scale):
  """A network that is given scale(t) x."""
  return lambda f, back: lambda params, x, c: f(x / scale(back(c)), c)


def karras(d):
  """EDM's F, eq. 7: D = c_skip x + c_out F(c_in x; log(sigma) / 4)."""

  def net(params, x, c):
    s = jnp.exp(4 * c)[:, None, None]
    root = jnp.sqrt(s**2 + d**2)
    x = x * root
    x0 = exact(EDM, x, jnp.exp(4 * c))[0]
    return (x0 - d**2 / root**2 * x) / (s * d / root)

  return net


def ours(row):
  """Returns net(params, x, c) of a row."""

  def answer(x, c):
    t = row.back(c)
    x0, eps, a, s = exact(row.process, x, t)
    column = jnp.reshape(t, jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t)))
    return row.out(x0, eps, a, s, column)

  return row.wrap(answer)


def wrapper(params, x, c):
  """k-diffusion's: x / sqrt(1 + sigma^2) of a DDPM at a fractional step."""
  x0, eps, a, s = exact(DDPM, x, step(c))
  return eps


def log_density(params, x, t):
  """log p_t of N(a mean, a^2 var + s^2), up to a constant."""
  t = t[:, None, None]
  a, s = VP.alpha(t), VP.sigma(t)
  square = (x - a * MEAN) ** 2 / (a**2 * VARIANCE + s**2)
  return -0.5 * square.sum((1, 2))


own = jd.from_alpha_sigma(lambda t: (1 - t) ** 2, lambda t: t, 1e-3, 1.0, 0.0)
eps_net = ours(Row(VP, same, noise))
first = lambda params, x, c: (eps_net(params, x, c), c)
named = lambda params, x, c: dict(sample=eps_net(params, x, c), more=x)
swapped = lambda params, c, x: eps_net(params, x, c)


def channels_first(params, x, c):
  assert x.shape == (4, 2, 3)
  return jnp.moveaxis(eps_net(params, jnp.moveaxis(x, 1, -1), c), -1, 1)


def with_variance(params, x, c):
  out = ours(Row(DDPM, step, noise))(params, x, c)
  return jnp.concatenate([out, 7.0 * out], -1)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, c):
    bias = self.param("bias", nn.initializers.zeros, (2,))
    return eps_net(None, x, c) + bias


class Nnx(nnx.Module):
  def __init__(self):
    self.bias = nnx.Param(jnp.zeros(2))

  def __call__(self, x, c):
    return eps_net(None, x, c) + self.bias[...]


@jax.tree_util.register_pytree_node_class
class Single:
  """A module that is a pytree and takes one sample, as Equinox's are."""

  def __init__(self, bias):
    self.bias = bias

  def tree_flatten(self):
    return (self.bias,), None

  @classmethod
  def tree_unflatten(cls, aux, leaves):
    return cls(*leaves)

  def __call__(self, x, c):
    return eps_net(None, x[None], c[None])[0] + self.bias


def nets(*args):
  return dict(net=ours(Row(*args))), args[0]


# what the line needs, and the process whose exact answer its model gives
NETWORKS = {
  "log(sigma) / 4, as in EDM": (dict(net=karras(0.5)), EDM),
  "the noise level sigma itself": nets(EDM, same, clean),
  "the step 0..N - 1, fractions between steps too (DDPM, Stable Diffusion,"
  " k-diffusion)": nets(DDPM, step, noise),
  "whole steps alone": nets(DDPM, whole, noise),
  "999 t of a continuous process (score_sde)": nets(
    VP, lambda c: c / 999, noise
  ),
  "t in [0, 1], 0 at the data (rectified flow)": nets(FLOW, same, straight),
  "1000 t, 0 at the data (Stable Diffusion 3, Flux)": nets(
    FLOW, lambda c: c / 1000, straight
  ),
  "s in [0, 1], 0 at the noise, with v = data - noise (flow matching)": nets(
    FLOW, lambda s: 1 - s, towards
  ),
  "s in [0, 1], 0 at the noise, with v = noise - data": nets(
    FLOW, lambda s: 1 - s, straight
  ),
  "the clean sample x0": nets(VP, same, clean),
  "the noise eps": nets(VP, same, noise),
  "v = alpha eps - sigma x0 (Salimans and Ho)": nets(
    VP, same, lambda x0, eps, a, s, t: a * eps - s * x0
  ),
  "v = sigma x0 - alpha eps, its negative": nets(
    VP, same, lambda x0, eps, a, s, t: s * x0 - a * eps
  ),
  "the score": nets(VP, same, lambda x0, eps, a, s, t: -eps / s),
  "dx/dt of a curved path, alpha' x0 + sigma' eps": nets(
    COSINE, same, curved(1)
  ),
  "dx/ds of a curved path, s = 1 - t": nets(
    COSINE, lambda s: 1 - s, curved(-1)
  ),
  "a scalar, the log-density": (dict(net=log_density), VP),
  "a tuple, of which the first is meant": (dict(net=first), VP),
  "a dict": (dict(net=named), VP),
  "channels of a learned variance after its own (iDDPM, ADM, DiT)": (
    dict(net=with_variance),
    DDPM,
  ),
  "a pair (x0, eps) by itself": (
    dict(net=lambda params, x, t: exact(VP, x, t)[:2]),
    VP,
  ),
  "x scaled to unit variance by its own sigma_data": (
    dict(net=karras(0.25)),
    EDM,
  ),
  "channels first": (dict(net=channels_first), VP),
  "one sample at a time (Equinox: the module is the params)": (
    dict(module=Single(jnp.zeros(2))),
    VP,
  ),
  "arguments in another order": (dict(net=swapped), VP),
  "a Flax Linen module": (
    dict(module=Linen(), params=dict(bias=jnp.zeros(2))),
    VP,
  ),
  "a Flax NNX module": (dict(module=Nnx()), VP),
  "your own alpha(t) and sigma(t)": nets(
    own, same, lambda x0, eps, a, s, t: eps - 2 * (1 - t) * x0
  ),
  "alphas_cumprod in place of betas": nets(DDPM, step, noise),
  "sigma / alpha joined linearly between the steps (diffusers' Euler)": nets(
    EULER, step, noise
  ),
  "betas rescaled to no signal at the last step": nets(
    RESCALED, step, lambda x0, eps, a, s, t: a * eps - s * x0
  ),
}


def run(name, **scope):
  """Returns the model that the page's line makes."""
  scope = (
    dict(
      jd=jd,
      jnp=jnp,
      jax=jax,
      N=N,
      params=(),
      betas=BETAS,
      alphas_cumprod=np.cumprod(1 - BETAS),
      edm=EDM,
      vp=VP,
      flow=FLOW,
      ddpm=DDPM,
      labels=LABELS,
      vectors=VECTORS,
      scales=SCALES,
    )
    | scope
  )
  exec(compile(ROWS[name], PAGE.name, "exec"), scope)
  return scope["model"]


def places(process):
  """Times at steps of a discrete process, both ends and one for each sample."""
  low, high = process.t_min, process.t_max
  if high > 1:
    return [0.5, 3.0, jnp.asarray([low, 0.1, 1.0, high])]
  # of N = 1000, 0.029 N is no whole number until it is rounded
  return [0.029, 0.9, jnp.asarray([0.02, 0.25, 0.6, 0.98])]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_line_of_the_page_reads_its_network_exactly(name, x64):
  scope, process = NETWORKS[name]
  model = run(name, **scope)
  for t in places(process):
    x = jnp.asarray(X)
    pair = model(x, t)
    for found, truth in zip(pair, exact(process, x, t)):
      np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)


def test_a_network_that_is_told_nothing_and_a_wrapped_one(x64):
  x = jnp.asarray(X)
  model = run("nothing", net=lambda params, x, c: 0.5 * x + c[:, None, None])
  np.testing.assert_array_equal(model(x, 2.0).x0, 0.5 * x)
  name = "x / sqrt(1 + sigma^2), steps, eps (k-diffusion's wrapper of a DDPM)"
  model = run(name, net=wrapper)
  for t in (0.5, 3.0):
    for found, truth in zip(model(x, t), exact(EDM, x, t)):
      np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-8)


def test_conditions_and_ranges_of_the_page(x64):
  x, t = jnp.asarray(X), 0.6
  means = jnp.asarray([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0], [0.0, 0.0]])
  matrix = jnp.asarray(RNG.normal(size=(5, 2)))
  about = lambda mean: exact(VP, x, t, mean[:, None])[:2]
  told = lambda centre: jd.from_function(
    lambda params, x, c, label: exact(VP, x, c, centre(label)[:, None])[1],
    (),
    VP,
    prediction="eps",
    time="t",
  )
  conditional = told(lambda label: means[label])
  embedded = told(lambda label: label @ matrix)
  scope = dict(conditional=conditional, embedded=embedded)

  def compare(name, truth, **more):
    for found, right in zip(run(name, **scope, **more)(x, t), truth):
      np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-9)

  compare("a class for each sample, i[batch]", about(means[LABELS]))
  compare("one class for all", about(means[np.full(4, 2)]))
  name = "a vector for each sample, f[batch, d], or for all, f[d]"
  compare(name, about(VECTORS @ matrix))
  whole = np.broadcast_to(VECTORS[0], (4, 5))
  compare(name, about(whole @ matrix), vectors=VECTORS[0])
  zero = about(means[np.full(4, 3)])
  mixed = lambda on, scale: [n + scale * (o - n) for o, n in zip(on, zero)]
  compare(
    "guidance toward a class; the null is usually num_classes",
    mixed(about(means[LABELS]), 2.0),
  )
  compare(
    "guidance toward a vector, the null being zeros; a scale for each sample",
    mixed(about(VECTORS @ matrix), SCALES[:, None, None]),
  )
  trained = lambda x, t: (x, (x - VP.alpha(t) * x) / VP.sigma(t))
  for name, limit in (
    ("x0 clipped to [-1, 1], with the eps that belongs to it", np.ones(4)),
    (
      "Imagen's dynamic thresholding",
      np.maximum(np.quantile(abs(X).reshape(4, -1), 0.9, axis=1), 1.0),
    ),
  ):
    limit = limit[:, None, None]
    x0 = np.clip(X, -limit, limit) / limit
    eps = (X - VP.alpha(t) * x0) / VP.sigma(t)
    compare(name, (x0, eps), trained=trained)


ELSEWHERE = (
  "nothing",
  "x / sqrt(1 + sigma^2), steps, eps (k-diffusion's wrapper of a DDPM)",
)


def test_every_row_is_tested():
  section = TEXT.partition("## Conditions")[2]
  conditions = re.findall(r"^\| (.+?) \| `model = ", section, re.M)
  assert len(conditions) == 7
  assert set(ROWS) == {*NETWORKS, *ELSEWHERE, *conditions}
  rows = re.findall(
    r"^\| (?!---|the network|what is|trained).*$", PAGE.read_text(), re.M
  )
  assert len(rows) == len(ROWS)


def test_the_programs_of_the_page_run():
  check, compare = re.findall(r"```python\n(.*?)```", TEXT, re.S)
  images = MEAN + VARIANCE**0.5 * RNG.normal(size=(64, 3, 2))
  images = images.astype(np.float32)
  name = "s in [0, 1], 0 at the noise, with v = data - noise (flow matching)"
  scope = dict(jd=jd, key=jax.random.key(0), images=images)
  scope |= dict(model=run(name, **NETWORKS[name][0]))
  exec(compile(check, PAGE.name, "exec"), scope)
  grid = jd.grids.karras(EDM, 4)
  name = "the noise level sigma itself"
  scope |= dict(model=run(name, **NETWORKS[name][0]), edm=EDM, grid=grid)
  scope |= dict(
    x=80 * jnp.asarray(X, jnp.float32), noise=np.zeros((4, 4, 3, 2))
  )
  exec(compile(compare, PAGE.name, "exec"), scope)
  assert scope["y"].shape == X.shape
