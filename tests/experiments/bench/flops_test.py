"""FLOPs are those of the arithmetic as it is written, loops and all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import flops

A = jax.ShapeDtypeStruct((64, 32), jnp.float32)
B = jax.ShapeDtypeStruct((32, 32), jnp.float32)
PRODUCT = 2 * 64 * 32 * 32


def test_a_product_is_counted_exactly():
  assert flops.count(lambda a, b: a @ b, A, B) == PRODUCT


def test_a_convolution_without_a_border_is_counted_exactly():
  x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 4, 16), jnp.float32)
  conv = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert flops.count(conv, x, kernel) == 2 * 2 * 36 * 9 * 4 * 16


def test_a_scan_is_counted_as_often_as_it_runs_also_within_another():
  def layers(a, b, n):
    step = jax.checkpoint(lambda a, _: (a @ b, None))
    return jax.lax.scan(step, a, None, length=n)[0]

  def steps(a, b):
    step = lambda a, _: (jax.jit(layers, static_argnums=2)(a, b, 3), None)
    return layers(jax.lax.scan(step, a, None, length=5)[0], b, 7)

  counted = flops.count(steps, A, B)
  assert counted == pytest.approx((5 * 3 + 7) * PRODUCT, rel=1e-3)


def test_a_network_with_its_layers_scanned_has_the_flops_of_the_loop():
  class Net(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
      body = lambda net, x, _: (nn.silu(nn.Dense(32)(x)), None)
      if self.scanned:
        scan = nn.scan(
          body,
          variable_axes={"params": 0},
          split_rngs={"params": True},
          length=4,
        )
        return scan(self, x, None)[0]
      for _ in range(4):
        x, _ = body(self, x, None)
      return x

  def counted(net):
    params = jax.eval_shape(net.init, jax.random.key(0), A)
    return flops.count(net.apply, params, A)

  loop = counted(Net(scanned=False))
  assert counted(Net(scanned=True)) == pytest.approx(loop, rel=1e-2)
  assert loop > 4 * PRODUCT


@pytest.mark.parametrize(
  ("kind", "half", "single"),
  [
    ("NVIDIA H200", 989e12, 494e12),
    ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
    ("NVIDIA H100 PCIe", 756e12, 378e12),
    ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
    ("NVIDIA A10G", 70e12, 35e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5p", 459e12, 459e12),
    ("TPU v6 lite", 918e12, 918e12),
  ],
)
def test_peaks_of_known_devices(kind, half, single):
  device = type("Device", (), dict(device_kind=kind, platform="gpu"))
  assert flops.peak(jnp.bfloat16, device).flops == half
  assert flops.peak(jnp.float32, device).flops == single


def test_an_unknown_accelerator_has_no_peak_and_a_cpu_is_measured():
  device = type("Device", (), dict(device_kind="Abacus", platform="gpu"))
  unknown = flops.peak(jnp.float32, device)
  assert np.isnan(unknown.flops) and "Abacus is not in" in unknown.source
  measured = flops.peak(jnp.float32)
  assert measured.flops > 1e8 and "measured" in measured.source
  half = flops.utilisation(measured.flops, 1.0, devices=2)
  assert half["utilisation"] == 0.5 and half["peak"] == measured.flops


def test_a_compiled_program_tells_its_own_work():
  compiled = jax.jit(lambda a, b: a @ b).lower(A, B).compile()
  used = flops.utilisation(compiled, 10.0)
  assert used["flops"] == PRODUCT
  assert used["utilisation"] == 10 * PRODUCT / used["peak"]
