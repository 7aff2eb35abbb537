"""Noise that somebody else drew: `sample` adds it where its own would be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree

EDM = jd.edm()
GRID = jd.grids.karras(EDM, 4, to_zero=True)
RNG = np.random.default_rng(0)
X = 80.0 * RNG.normal(size=(3, 2))
Z, Z0 = RNG.normal(size=(2, 8, 3, 2))
KEY = jax.random.key(0)


def denoised(x, t):
  """E[x0 | x] of a Gaussian of variance 1/4."""
  return 0.25 * x / (0.25 + t**2)


def model(x, t):
  return denoised(x, t), x * t / (0.25 + t**2)


def draw(table, **options):
  with jax.enable_x64(True):
    return np.asarray(jd.sample(KEY, model, table, jnp.asarray(X), **options))


def test_euler_ancestral_of_k_diffusion_draw_by_draw():
  x = X
  for i, (s, to) in enumerate(zip(GRID[:-1], GRID[1:])):
    up = min(to, np.sqrt(to**2 * (s**2 - to**2) / s**2))
    down = np.sqrt(to**2 - up**2)
    x = x + (x - denoised(x, s)) / s * (down - s) + up * Z[i]
  found = draw(solvers.ddim(EDM, GRID, eta=1.0), noise=Z[:4])
  np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-13)


def churned(churn):
  """Algorithm 2 of Karras et al. (2022), S_noise = 1, by hand."""
  x, row = X, 0
  gamma = min(churn / 4, np.sqrt(2) - 1)
  for s, to in zip(GRID[:-1], GRID[1:]):
    hat = s * (1 + gamma)
    x = x + np.sqrt(hat**2 - s**2) * Z0[row]
    d = (x - denoised(x, hat)) / hat
    new = x + (to - hat) * d
    row += 1
    if to > 0:
      new = x + (to - hat) * 0.5 * (d + (new - denoised(new, to)) / to)
      row += 1
    x = new
  return x, row


def test_draws_before_the_calls_are_those_of_churn():
  exact, rows = churned(1.0)
  table = solvers.heun_churn(EDM, GRID, churn=1.0)
  assert table.nfe == rows
  found = draw(table, noise=sampling.Draws(before=Z0[:rows]))
  np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13)


def own(n, x):
  """The noise that `sample` draws after each of n calls, by its keys."""
  key = sampling.stream(KEY)
  draws = [
    tree.normal(jax.random.fold_in(jax.random.fold_in(key, i), 1), x)
    for i in range(n)
  ]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)


def test_its_own_draws_given_back_are_the_same_samples_in_every_form():
  """For a tree, plain, jitted, by length, and mapped over two sets of draws."""
  x = {"a": jnp.asarray(X, jnp.float32), "b": jnp.ones((3, 1, 2))}
  table = solvers.ddim(EDM, GRID[:-1], eta=1.0)
  pair = lambda x, t: tuple(
    {k: f(v, t)[i] for k, v in x.items()} for i, f in enumerate((model, model))
  )
  plain = jd.sample(KEY, pair, table, x)
  noise = own(3, x)
  given = lambda noise: jd.sample(KEY, pair, table, x, noise=noise)
  for found in (
    given(noise),
    jax.jit(given)(noise),
    jax.tree.map(lambda v: v[1], jax.vmap(given)(both(noise))),
  ):
    chex.assert_trees_all_close(found, plain, atol=1e-6)
  padded = jd.tableau.pad(table, 5, table.memory)
  more = jax.tree.map(lambda v: jnp.concatenate([v, v[:2]]), noise)
  found = jd.sample(KEY, pair, padded, x, noise=more, length=3)
  chex.assert_trees_all_close(found, plain, atol=1e-6)


def both(noise):
  return jax.tree.map(lambda v: jnp.stack([2.0 * v, v]), noise)


def test_other_draws_of_the_same_shape_compile_nothing():
  table = solvers.ddpm(EDM, GRID)
  x = jnp.asarray(X, jnp.float32)
  jd.sample(KEY, model, table, x, noise=Z[:4])
  count = sampling.compilations()
  jd.sample(KEY, model, table, x, noise=Z0[:4])
  assert sampling.compilations() == count


@pytest.mark.parametrize(
  ("table", "noise", "error", "match"),
  [
    (
      solvers.ddpm(EDM, GRID),
      Z[:3],
      ValueError,
      r"noise after the calls has shape \(3, 3, 2\).*4 rows, has \(4, 3, 2\)",
    ),
    (solvers.ddpm(EDM, GRID), {"a": Z[:4]}, ValueError, "lacks the leaf"),
    (solvers.ddpm(EDM, GRID), Z[:4].astype(int), TypeError, "got int"),
    (jd.euler(EDM, GRID), Z[:4], ValueError, "draws no noise after its calls"),
    (
      solvers.heun_churn(EDM, GRID, churn=1.0),
      Z[:7],
      ValueError,
      "draws noise before its calls, but noise= gives none",
    ),
    (
      solvers.ddpm(EDM, GRID),
      sampling.Draws(before=Z[:4], after=Z[:4]),
      ValueError,
      "draws no noise before its calls, but noise= gives some",
    ),
  ],
)
def test_noise_of_another_table_is_refused(table, noise, error, match):
  with pytest.raises(error, match=match):
    jd.sample(KEY, model, table, jnp.asarray(X), noise=noise)
