"""Weights that make the terms of a loss pull alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.distillation.parts.balance import balance


def test_adaptive_weights_make_terms_pull_alike(x64):
  params = {"out": jnp.asarray([1.0, 2.0]), "in": jnp.asarray(3.0)}

  def terms(params, scale=1.0):
    out = params["out"] * params["in"]
    return {
      "ctm": jnp.sum(out**2),
      "dsm": scale * jnp.sum(jnp.sin(out)),
      "gan": 1e-9 * jnp.sum(out),
    }

  bounds = {"dsm": (0.0, 1e4), "gan": (0.01, 10.0)}

  @jax.jit
  def pulls(scale):
    """Returns the weights, and the gradients in the last layer."""
    own = lambda p: terms(p, scale)
    slopes = jax.jacrev(own)(params)
    return balance(own, params, "out", "ctm", bounds), slopes

  found = []
  for scale in (1.0, 10.0):
    a, slopes = pulls(scale)
    assert float(a["gan"]) == 10.0
    found.append(a["dsm"] * slopes["dsm"]["out"])
    assert float(jnp.linalg.norm(found[-1])) == pytest.approx(
      float(jnp.linalg.norm(slopes["ctm"]["out"])), rel=1e-12
    )
  np.testing.assert_allclose(*found, rtol=1e-12)
