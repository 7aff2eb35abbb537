"""Augmentations: exact where they can be, and told truly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff.losses import augment

IMAGES = jax.random.normal(jax.random.key(0), (64, 8, 8, 3))


@pytest.fixture(scope="module")
def drawn():
  geometric = augment.Geometric(probability=0.5)
  return jax.jit(geometric)(jax.random.key(1), IMAGES)


def test_zeros_are_told_of_images_left_alone_and_of_no_others(drawn):
  images, told = drawn
  assert told.shape == (64, augment.Geometric.width)
  same = np.isclose(images, IMAGES, atol=1e-6).all((1, 2, 3))
  np.testing.assert_array_equal(same, (told == 0).all(1))
  only = lambda i: np.flatnonzero(
    (np.delete(told, i, 1) == 0).all(1) & (told[:, i] != 0)
  )
  for i, flipped in ((0, IMAGES[:, :, ::-1]), (1, IMAGES[:, ::-1])):
    assert len(only(i)) or i == 1
    np.testing.assert_array_equal(images[only(i)], flipped[only(i)])


def test_without_probability_half_are_mirrored_exactly():
  images, told = augment.Geometric(probability=0.0)(jax.random.key(2), IMAGES)
  mirrored = told[:, 0] == 1
  assert 16 < mirrored.sum() < 48
  np.testing.assert_array_equal(told[:, 1:], 0)
  np.testing.assert_array_equal(images[mirrored], IMAGES[mirrored][:, :, ::-1])
  np.testing.assert_array_equal(images[~mirrored], IMAGES[~mirrored])


@pytest.mark.parametrize(
  ("inverse", "expected"),
  [
    ([[1, 0, 0], [0, 1, 0]], lambda v: v),
    ([[0, -1, 0], [1, 0, 0]], lambda v: np.rot90(v)),
    ([[0, 1, 0], [-1, 0, 0]], lambda v: np.rot90(v, -1)),
    ([[-1, 0, 0], [0, 1, 0]], lambda v: v[:, ::-1]),
    # by a quarter of the half side, one pixel: the outside is mirrored
    ([[1, 0, 0.25], [0, 1, 0]], lambda v: v[:, [1, 2, 3, 4, 5, 6, 7, 6]]),
  ],
)
def test_maps_onto_pixels_are_exact(inverse, expected):
  image = np.asarray(IMAGES[0])
  found = augment._transform(IMAGES[0], jnp.asarray(inverse, jnp.float32))
  np.testing.assert_allclose(found, expected(image), atol=1e-5)


def test_a_turn_keeps_smooth_rings_and_a_scale_their_order():
  """A turned ring is the ring; one scaled up is wider."""
  at = (np.arange(32) + 0.5) / 16 - 1
  radius = np.hypot(*np.meshgrid(at, at))[..., None]
  ring = jnp.asarray(np.exp(-0.5 * ((radius - 0.5) / 0.15) ** 2), jnp.float32)
  turn = jnp.concatenate([augment._turn(0.7), jnp.zeros((2, 1))], axis=1)
  inside = radius[..., 0] < 0.95  # what comes from the outside is mirrored
  turned = augment._transform(ring, turn)
  np.testing.assert_allclose(turned[inside], ring[inside], atol=0.05)
  larger = augment._transform(ring, jnp.eye(2, 3) / 1.3)
  mass = lambda v: float((v[..., 0] * radius[..., 0]).sum() / v.sum())
  assert 1.2 < mass(larger) / mass(ring) < 1.35


def test_a_network_that_cannot_be_told_refuses():
  model = denoisers.from_linen(networks.MLP((8,), 8), {}, processes.edm())
  losses.denoising(model, augment=augment.Mirror())
  with pytest.raises(ValueError, match=r"tells .* 9 numbers.* takes 0.*Mirror"):
    losses.denoising(model, augment=augment.Geometric())


def test_a_noisy_augmentation_changes_x_and_its_target_alike():
  """The exact denoiser of the changed image has no loss either."""
  process = processes.edm()
  know = lambda params, x, c: params["x0"]
  model = denoisers.from_function(know, {}, process, prediction="x0")
  loss = losses.denoising(
    model, augment=augment.Mirror(), augment_noisy=True, weighting="x0"
  )
  key = jax.random.key(3)
  image, _ = augment.Mirror()(jax.random.fold_in(key, 3), IMAGES)
  right, _ = loss(key, dict(x0=image), dict(image=IMAGES))
  wrong, _ = loss(key, dict(x0=IMAGES), dict(image=IMAGES))
  assert right == 0.0
  assert wrong > 0.1
