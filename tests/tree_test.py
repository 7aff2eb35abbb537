"""Trees: batches, noise that belongs to a sample, arrays and the rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes
from jaxdiff import tree

KEY = jax.random.key(11)
LIKE = {
  "image": jax.ShapeDtypeStruct((9, 4, 3), jnp.float32),
  "small": jax.ShapeDtypeStruct((9,), jnp.bfloat16),
}


def rows(like, n):
  resize = lambda s: jax.ShapeDtypeStruct((n, *s.shape[1:]), s.dtype)
  return jax.tree.map(resize, like)


# --- noise -------------------------------------------------------------------


def test_sample_7_is_bit_identical_alone_in_a_batch_and_compiled():
  batch = tree.normal(KEY, LIKE)
  alone = tree.normal(KEY, rows(LIKE, 1), jnp.array([7]))
  some = jnp.array([2, 7, 0])
  three = jax.jit(lambda i: tree.normal(KEY, rows(LIKE, 3), i))(some)
  for name in LIKE:
    np.testing.assert_array_equal(batch[name][7], alone[name][0])
    np.testing.assert_array_equal(batch[name][some], three[name])


def test_keys_samples_and_leaves_draw_different_noise():
  like = [jax.ShapeDtypeStruct((5, 2), jnp.float32)] * 2
  one, two = tree.normal(KEY, like)
  other, _ = tree.normal(jax.random.key(12), like)
  assert np.unique(np.stack([one, two, other])).size == 30


def test_noise_keeps_the_dtype_and_is_drawn_wide():
  draws = tree.normal(KEY, LIKE)
  assert draws["image"].dtype == jnp.float32
  assert draws["small"].dtype == jnp.bfloat16
  wide = dict(LIKE, small=jax.ShapeDtypeStruct((9,), jnp.float32))
  rounded = tree.normal(KEY, wide)["small"].astype(jnp.bfloat16)
  np.testing.assert_array_equal(draws["small"], rounded)


def test_noise_is_standard_normal_within_its_standard_error():
  n = 100_000
  z = tree.normal(KEY, jax.ShapeDtypeStruct((n // 4, 4), jnp.float32))
  assert abs(z.mean()) < 4 / n**0.5
  assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
  assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / (n / 4) ** 0.5


def test_float64_noise_is_drawn_where_jax_may(x64):
  like = jax.ShapeDtypeStruct((2, 3), jnp.float64)
  z = np.asarray(tree.normal(KEY, like))
  assert z.dtype == np.float64
  assert (z != z.astype(np.float32)).all()


def test_integers_and_wrong_indices_are_refused():
  with pytest.raises(TypeError, match="int32"):
    tree.normal(KEY, jnp.zeros((2, 3), jnp.int32))
  for index in (jnp.array([0]), jnp.arange(8), jnp.array(0)):
    with pytest.raises(ValueError, match=r"shape \(9,\), got"):
      tree.normal(KEY, LIKE, index)


# --- shapes and dtypes -------------------------------------------------------


def test_batch_size_is_the_common_leading_dimension():
  assert tree.batch_size(LIKE) == 9
  assert tree.batch_size(np.zeros((3, 2))) == 3


@pytest.mark.parametrize(
  ("x", "message"),
  [
    ({}, "tree without leaves"),
    (1.0, r"leaf x is a scalar.*x\[None\]"),
    ({"a": np.zeros(2), "b": np.float32(1)}, r"leaf \['b'\] is a scalar"),
    ({"a": np.zeros(2), "b": np.zeros(3)}, r"leaf \['b'\] has 3 .* have 2"),
  ],
)
def test_batch_size_names_the_leaf_that_differs(x, message):
  with pytest.raises(ValueError, match=message):
    tree.batch_size(x)


def test_solver_arithmetic_is_float32_or_wider():
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, np.float64):
    assert tree.compute_dtype(dtype) == jnp.float32
  with jax.enable_x64(True):
    assert tree.compute_dtype(np.float64) == jnp.float64
    assert tree.compute_dtype(jnp.bfloat16) == jnp.float32


def test_expand_lines_a_batch_of_times_up_with_samples():
  x = np.zeros((2, 3, 4))
  assert tree.expand(0.5, x) == 0.5
  assert tree.expand(np.ones(2), x).shape == (2, 1, 1)
  assert tree.expand(jnp.ones((2, 1)), x).shape == (2, 1, 1)


# --- partition ---------------------------------------------------------------


def model():
  return {
    "array": jnp.arange(3.0),
    "host": np.ones(2),
    "number": 2.5,
    "none": None,
    "function": jnp.tanh,
    "process": processes.edm(),
    "nested": [1, ("label", jnp.zeros(()))],
  }


def test_combine_undoes_partition():
  arrays, static = tree.partition(model())
  assert len(arrays) == 5
  back = tree.combine(arrays, static)
  expected = model()
  assert jax.tree.structure(back) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(expected)):
    assert np.array_equal(a, b) if tree.is_array(b) else a == b


def test_equal_models_share_a_program_and_arrays_are_its_arguments():
  traced = []

  @functools.partial(jax.jit, static_argnums=1)
  def program(arrays, static):
    traced.append(None)
    whole = tree.combine(arrays, static)
    return whole["function"](whole["array"]) * whole["number"]

  arrays, static = tree.partition(model())
  first = program(arrays, static)
  changed = dict(model(), number=5.0, array=jnp.ones(3))
  second = program(*tree.partition(changed))
  np.testing.assert_allclose(first, 2.5 * np.tanh(np.arange(3)), rtol=1e-6)
  np.testing.assert_allclose(second, 5 * np.tanh(np.ones(3)), rtol=1e-6)
  assert len(traced) == 1
  program(*tree.partition(dict(model(), function=jnp.sin)))
  program(*tree.partition(dict(model(), process=processes.ve())))
  assert len(traced) == 3


def test_classes_of_equal_fields_do_not_share_a_program():
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(frozen=True)
  class Double:
    by: float

    def __call__(self, x):
      return 2.0 * x * self.by

  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(frozen=True)
  class Square:
    by: float

    def __call__(self, x):
      return x**2 * self.by

  @functools.partial(jax.jit, static_argnums=1)
  def program(arrays, static):
    return tree.combine(arrays, static)["inner"][0](3.0)

  results = [
    program(*tree.partition({"inner": [one(1.0)]})) for one in (Double, Square)
  ]
  assert results == [6.0, 9.0]


def test_a_model_that_cannot_be_a_compilation_key_is_refused_with_the_mend():
  class Unhashable:
    __hash__ = None

  with pytest.raises(TypeError, match="register the class as a pytree"):
    tree.partition({"w": jnp.ones(2), "model": Unhashable()})


def test_a_digest_names_the_numbers_and_nothing_else():
  one = {"a": jnp.arange(4.0), "b": np.ones((2, 3), np.float32)}
  same = {"b": jnp.ones((2, 3)), "a": np.arange(4, dtype=np.float32)}
  assert tree.digest(one) == tree.digest(same)
  for other in (
    one | {"a": jnp.arange(4.0).at[2].add(1e-6)},
    one | {"a": jnp.arange(4)},
    one | {"a": jnp.arange(4.0).reshape(2, 2)},
    {"a": one["a"], "c": one["b"]},
    {"a": one["b"], "b": one["a"]},
  ):
    assert tree.digest(other) != tree.digest(one)
