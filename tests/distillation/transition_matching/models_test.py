"""Chains of transitions as models."""

import jax
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from tests.distillation import cases


def test_tokens_are_patches_in_raster_order():
  model = cases.chain("dtm")
  x = np.arange(32.0).reshape(2, 4, 4, 1)
  tokens = model.split(x)
  np.testing.assert_array_equal(tokens[0, 1], [2.0, 3.0, 6.0, 7.0])
  np.testing.assert_array_equal(model.join(tokens), x)


def test_chains_that_cannot_be_are_refused():
  make = lambda *args, **options: distillation.transitions(
    jax.random.key(0), *args, **options
  )
  with pytest.raises(ValueError, match='no X_0; choose process="linear"'):
    make((2,), "dtm", process="independent")
  with pytest.raises(ValueError, match="are enough to know X_T"):
    make((2,), "fhtm", process="linear")
  with pytest.raises(ValueError, match="got steps=0"):
    make((2,), "dtm", steps=0)
  with pytest.raises(ValueError, match=r"tokens of shape \(3, 2, 1\) do not"):
    make((8, 8, 1), "dtm", token=(3, 2, 1))
  with pytest.raises(ValueError, match="cannot; give the transformer heads"):
    make((2,), "artm", heads=0)
  with pytest.raises(ValueError, match="variant must be one of"):
    make((2,), "flow")
  model = make((2,), "dtm", steps=4, continuous=False, heads=0, width=8)
  draw = lambda **options: distillation.sample_transitions(
    jax.random.key(0), model, 2, **options
  )
  with pytest.raises(ValueError, match=r"T=4 .*steps=8; .*continuous=True"):
    draw(steps=8)
  with pytest.raises(ValueError, match="got steps=4 and head_steps=0"):
    draw(head_steps=0)
  with pytest.raises(ValueError, match="towards a label, but there is none"):
    draw(guidance=2.0)
  with pytest.raises(ValueError, match="got head_repeat=0"):
    distillation.transition_matching(
      model, optimizer=optax.sgd(0.1), head_repeat=0
    )
