r"""Denoising MCMC: a chain in (x, sigma) near the data, finished by a table.

Langevin-Gibbs moves on p(x, sigma) = p_sigma(x) q(sigma), with q uniform on a
geometric ladder of noise levels and p_sigma the data with noise sigma:

  x     <- x + (eta / 2) s(x, sigma) + sqrt(eta) z        one call
  sigma <- a draw (or the mode) of p(sigma | x)           a cheap classifier

After every `skip` moves the visited state of the smallest sigma is denoised by
a table that starts at that level; the chain goes on from its last state, not
from the denoised one. An output costs skip + table.nfe calls, few because the
chain stays near the data. Consecutive outputs of a chain are correlated: run
many chains. Reference: Kim and Ye (2023), https://arxiv.org/abs/2209.14593.

x is held as x / alpha, in which every process is one curve. There are as many
starts as levels, so `finishers` builds the table of each on the host, by any
solver; a sample's own table is a row of that stack, with its coefficients in a
trailing axis over the batch. The Langevin step is the same at all levels: it is
stable for eta < 4 (sigma^2 + variance of the data) along every direction, and
otherwise throws x out to where sigma is of order sqrt(eta).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.samplers.langevin import move
from jaxdiff.tableau import Tableau
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Posterior = Callable[[jax.Array], jax.Array]
GIBBS = ("sample", "argmax")


class Chain(NamedTuple):
  """The state of the chains.

  Attributes:
    x: f[batch, ...], noisy samples divided by alpha.
    level: i32[batch], places on the ladder.
  """

  x: jax.Array
  level: jax.Array


class DMCMCInfo(NamedTuple):
  """What `dmcmc` tells beside its samples.

  Attributes:
    sigma: f[outputs, batch], the noise levels that the tables started from.
    visited: i32[outputs, skip, batch], all visited places on the ladder.
    chain: where the chains are now; pass it on for more outputs.
    nfe: network calls for each output, skip + those of the table.
  """

  sigma: jax.Array
  visited: jax.Array
  chain: Chain
  nfe: int


class _Info(NamedTuple):
  step: jax.Array
  kept: PyTree


class _Rules(NamedTuple):
  """What does not change from move to move."""

  model: Model
  posterior: Any
  finish: Tableau
  process: GaussianProcess
  levels: jax.Array  # f[K]
  eta: jax.Array
  index: jax.Array
  skip: int
  gibbs: str


@checks.door
def ladder(
  sigma_min: float = 0.01, sigma_max: float = 50.0, levels: int = 1000
) -> np.ndarray:
  """Returns rising noise levels sigma_min (sigma_max / sigma_min)^u, f64[K].

  u is uniform from 1e-3 to 1: the lowest level lies just above sigma_min, where
  the finishing grids end.

  Raises:
    ValueError: unless 0 < sigma_min < sigma_max and levels >= 2.
  """
  if not 0.0 < sigma_min < sigma_max or levels < 2:
    raise ValueError(
      "a ladder needs 0 < sigma_min < sigma_max and at least two levels, got"
      f" sigma_min={sigma_min}, sigma_max={sigma_max}, levels={levels}"
    )
  u = np.linspace(1e-3, 1.0, levels)
  return sigma_min * (sigma_max / sigma_min) ** u


@checks.door
def finishers(
  build: Callable[[float], Tableau], process: GaussianProcess, levels: ArrayLike
) -> Tableau:
  """Returns the tables from every level, stacked: leaves [K, n, ...].

  Args:
    build: from a first time to a table, as in lambda start: heun(process,
      karras(process, 3, start=start, to_zero=True)).
    process: the forward process.
    levels: f[K], the ladder.

  Raises:
    ValueError: if the tables differ in their number of calls, or start
      elsewhere.
  """
  times = process.time_at(np.asarray(levels, np.float64))
  times = np.minimum(times, process.t_max)  # beyond it by rounding alone
  each = [build(float(t)) for t in times]
  for t, table in zip(times, each, strict=True):
    raised = np.any(table.noise[0, 0])  # churn begins above the start
    if not raised and not np.isclose(table.t[0], t, rtol=1e-6):
      raise ValueError(
        f"the table for a start at t = {t:.6g} makes its first call at"
        f" t = {float(table.t[0]):.6g}; pass the time on, as in"
        " karras(process, n, start=start)"
      )
  stack, lengths = tables.stack(each)
  if len(set(lengths)) > 1:
    raise ValueError(
      f"the tables make from {min(lengths)} to {max(lengths)} calls; give every"
      " start a grid of as many steps, so that all samples cost the same"
    )
  return stack


@checks.door
def at_levels(stack: Tableau, level: jax.Array, ndim: int) -> Tableau:
  """Returns each sample's own table as one, with a trailing batch axis.

  Args:
    stack: stack of `finishers`, leaves [K, n, ...] without data dimensions.
    level: i32[batch].
    ndim: number of axes of the samples, the batch included.
  """
  ones = (1,) * (ndim - 1)

  def own(leaf):
    rows = control.rows_at(jnp.asarray(leaf), jnp.asarray(level))
    rows = jnp.moveaxis(rows, 0, -1)
    return rows.reshape(rows.shape + ones)

  table = tables.under(Tableau(*map(own, stack)), stack.process)
  return table._replace(t=table.t.reshape(table.t.shape[:2]))


@checks.door
def start_chain(
  key: jax.Array,
  x0: jax.Array,
  levels: ArrayLike,
  sigma: float = 0.5,
  index: ArrayLike | None = None,
) -> Chain:
  """Returns chains that begin at samples x0 with noise sigma added.

  Args:
    key: PRNG key.
    x0: f[batch, ...], samples of any quality (or data).
    levels: f[K], the ladder.
    sigma: noise level; the nearest of the ladder is taken.
    index: i32[batch], indices of the chains; 0, 1, ... by default.

  Raises:
    ValueError: for a sigma that is not positive.
  """
  if not sigma > 0:
    raise ValueError(f"sigma is a noise level, positive; got {sigma}")
  x0 = jnp.asarray(x0)
  nearest = int(np.argmin(abs(np.log(np.asarray(levels)) - np.log(sigma))))
  x = x0 + levels[nearest] * tree.normal(key, x0, index)
  return Chain(x.astype(x0.dtype), jnp.full(x0.shape[0], nearest, jnp.int32))


@checks.sampler
def dmcmc(
  key: jax.Array,
  model: sampling.Model,
  finish: Tableau,
  chain: Chain,
  *,
  process: GaussianProcess,
  posterior: Posterior,
  levels: ArrayLike,
  eta: ArrayLike = 0.1,
  skip: int = 4,
  outputs: int = 1,
  burn_in: ArrayLike = (),
  gibbs: str = "sample",
  index: ArrayLike | None = None,
  check_finite: bool = False,
) -> tuple[jax.Array, DMCMCInfo]:
  """Returns (x, info): samples of every chain, f[outputs, batch, ...].

  One compiled program.

  Args:
    key: PRNG key; a chain's noise depends on it and on the chain's index.
    model: model(x, t) -> Prediction with t f[batch], as all of this library.
    finish: as `finishers` returns it, for the same ladder.
    chain: where the chains are: `start_chain`, or a former `info.chain`.
    process: the forward process.
    posterior: x / alpha -> log p(sigma | x) f[batch, K] up to a constant: a
      trained noise classifier, or `ExactPosterior`. A pytree's arrays are
      arguments of the program.
    levels: f[K], the ladder.
    eta: step of the chain, a variance in units of x / alpha.
    skip: moves for each output; 0 denoises the chain as it is, once.
    outputs: samples of each chain.
    burn_in: f[m], steps of moves made before the first output, not counted.
    gibbs: "sample", the exact Gibbs step, or "argmax", the mode.
    index: i32[batch], indices of the chains; 0, 1, ... by default.
    check_finite: whether to look for NaN and infinities, and to raise.

  Raises:
    ValueError: for eta <= 0, skip = 0 with several outputs, levels outside of
      the process, a posterior or tables of another number of levels, a model
      or tables of another process, or noise that is not normal.
    FloatingPointError: with check_finite, naming eta and sigma.
  """
  levels = np.asarray(levels, np.float64)
  x, level = map(jnp.asarray, chain)
  chain = Chain(x.astype(tree.compute_dtype(x.dtype)), level)
  burn_in = np.asarray(burn_in, np.float64).reshape(-1)
  _check(process, levels, eta, burn_in, skip, outputs, gibbs, finish)
  agreement.check(model, finish, process, "dmcmc")
  batch = tree.batch_size(chain)
  index = control.numbers(chain, index)
  arrays, static = tree.partition((model, posterior))
  samples, sigma, visited, chain = _program(
    key,
    arrays,
    finish,
    chain,
    jnp.asarray(levels),
    jnp.asarray(burn_in),
    jnp.asarray(eta),
    index,
    static=static,
    process=process,
    skip=skip,
    outputs=outputs,
    gibbs=gibbs,
  )
  if check_finite:
    finite = jnp.isfinite(samples).reshape(outputs, batch, -1).all(-1)
    if not finite.all():
      bad = tuple(int(i) for i in np.argwhere(~np.asarray(finite))[0])
      raise FloatingPointError(
        f"output {bad[0]} of chain {bad[1]} is NaN or infinite, denoised from"
        f" sigma = {float(sigma[bad]):.4g} of a chain with eta ="
        f" {float(eta):.4g}; Langevin moves are stable for eta below 4"
        " (sigma^2 + variance of the data): take a smaller eta"
      )
  nfe = skip + np.shape(finish.t)[1]
  return samples, DMCMCInfo(sigma, visited, chain, nfe)


def chain_step(
  key: jax.Array,
  model: sampling.Model,
  posterior: Posterior,
  chain: Chain,
  eta: jax.Array,
  *,
  process: GaussianProcess,
  levels: jax.Array,
  gibbs: str = "sample",
  index: jax.Array,
) -> Chain:
  """Returns the chains after one Langevin and one Gibbs step."""
  x = chain.x
  dtype = tree.compute_dtype(x.dtype)
  sigma = control.rows_at(levels.astype(dtype), chain.level)
  t = process.time_at(sigma)
  noisy = (tree.expand(process.alpha(t), x) * x).astype(x.dtype)
  score = -ask(model, noisy, t).eps / tree.expand(sigma, x)
  z = tree.normal(jax.random.fold_in(key, 0), x, index)
  x = move(x, score, jnp.asarray(eta, dtype) / 2.0, z)
  logits = posterior(x)
  if logits.shape != (x.shape[0], levels.shape[0]):
    raise ValueError(
      f"the posterior answers with shape {logits.shape}, but there are"
      f" {x.shape[0]} chains and a ladder of {levels.shape[0]} levels; train"
      " the noise classifier on the same ladder"
    )
  if gibbs == "argmax":
    return Chain(x, jnp.argmax(logits, axis=1).astype(jnp.int32))
  own = jax.random.fold_in(key, 1)
  draw = lambda i, row: jax.random.categorical(jax.random.fold_in(own, i), row)
  return Chain(x, jax.vmap(draw)(index, logits).astype(jnp.int32))


def _dmcmc(
  key,
  arrays,
  finish,
  chain,
  levels,
  burn_in,
  eta,
  index,
  *,
  static,
  process,
  skip,
  outputs,
  gibbs,
):
  """The compiled part of `dmcmc`."""
  model, posterior = tree.combine(arrays, static)
  rules = _Rules(
    model, posterior, finish, process, levels, eta, index, skip, gibbs
  )
  key = jax.random.fold_in(key, _TAG)  # apart from the caller's own draws
  if burn_in.shape[0]:
    chain, _ = sampling.run(
      jax.random.fold_in(key, 0),
      lambda key, eta, chain: (_move(rules, key, eta, chain), None),
      burn_in,
      chain,
    )
  chain, kept = sampling.run(
    jax.random.fold_in(key, 1),
    functools.partial(_output, rules),
    jnp.arange(outputs),
    chain,
    collect=sampling.every(1, _kept),
  )
  return (*kept, chain)


def _move(rules, key, eta, chain):
  """One Langevin and one Gibbs step."""
  return chain_step(
    key,
    rules.model,
    rules.posterior,
    chain,
    eta,
    process=rules.process,
    levels=rules.levels,
    gibbs=rules.gibbs,
    index=rules.index,
  )


def _walk(rules, key, row, state):
  """A move, and the state of the lowest level so far."""
  i, eta = row
  chain, best = state
  chain = _move(rules, key, eta, chain)
  lower = chain.level < best.level
  best = jax.tree.map(
    lambda new, old: jnp.where(tree.expand(lower, new), new, old), chain, best
  )
  return (chain, best), _Info(i, chain.level)


def _output(rules, key, i, chain):
  """`skip` moves, and a sample from the lowest level that they visited."""
  best = chain
  visited = jnp.zeros((0, *rules.index.shape), jnp.int32)
  if rules.skip:
    nowhere = jnp.full_like(chain.level, rules.levels.shape[0])
    (chain, best), visited = sampling.run(
      jax.random.fold_in(key, 0),
      functools.partial(_walk, rules),
      (jnp.arange(rules.skip), jnp.full(rules.skip, rules.eta)),
      (chain, Chain(chain.x, nowhere)),
      collect=sampling.every(1, _kept),
    )
  sample = _finish(rules, jax.random.fold_in(key, 1), best)
  sigma = control.rows_at(rules.levels, best.level)
  return chain, _Info(i, (sample, sigma, visited))


def _finish(rules, key, best):
  """Runs every sample's own table from its own level."""
  x = best.x
  levels = rules.levels.astype(tree.compute_dtype(x.dtype))
  t = rules.process.time_at(control.rows_at(levels, best.level))
  noisy = (tree.expand(rules.process.alpha(t), x) * x).astype(x.dtype)
  table = at_levels(rules.finish, best.level, x.ndim)
  state = sampling.initial_state(noisy, table.memory)
  rows = sampling.rows_of(table, state.y.dtype)
  advance = sampling.table_advance(rules.model, rules.index)
  state, _ = sampling.run(key, advance, rows, state)
  return state.a.astype(x.dtype)


def _kept(info):
  return info.kept


def _check(process, levels, eta, burn_in, skip, outputs, gibbs, finish):
  checks.process(process, "dmcmc(..., process=...)")
  check_normal(process, "dmcmc", "score")
  checks.one_of(gibbs, GIBBS, "gibbs")
  known = checks.concrete(eta)
  if (known and not eta > 0) or not (burn_in > 0).all():
    raise ValueError(
      f"the chain moves by steps eta > 0, got eta={eta} and burn_in="
      f"{burn_in.tolist()}; 0.05 to 1 suit data of unit scale"
    )
  if skip < 0 or outputs < 1 or (skip == 0 and outputs > 1):
    raise ValueError(
      "every output needs at least one move of its own, got"
      f" skip={skip}, outputs={outputs}; skip=0 denoises the chain as it is and"
      " takes outputs=1"
    )
  if np.shape(finish.t)[:1] != levels.shape or np.ndim(finish.t) != 2:
    raise ValueError(
      f"finish holds tables of shape {np.shape(finish.t)} for a ladder of"
      f" {levels.shape} levels; make one table for each level with"
      " finishers(build, process, levels)"
    )
  low, high = process.noise_level(np.asarray([process.t_min, process.t_max]))
  slack = 1.0 + 1e-6
  if levels.min() < low / slack or levels.max() > high * slack:
    raise ValueError(
      f"the ladder spans noise levels {levels.min():.4g} to"
      f" {levels.max():.4g}, but the model's process {low:.4g} to {high:.4g};"
      " take a ladder inside of it"
    )


class ExactPosterior(NamedTuple):
  """log p(sigma | x) of a known distribution on a ladder; a pytree.

  Attributes:
    distribution: has log_prob(x, alpha, sigma), as mixtures do.
    levels: f[K], the ladder.
  """

  distribution: Any
  levels: Array

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns log p_sigma(x) at every level, f[batch, K]."""
    log_prob = lambda sigma: self.distribution.log_prob(x, 1.0, sigma)
    return jax.vmap(log_prob, out_axes=1)(jnp.asarray(self.levels, x.dtype))


_TAG = 0x646C6700
_program = jax.jit(
  _dmcmc, static_argnames=("static", "process", "skip", "outputs", "gibbs")
)
