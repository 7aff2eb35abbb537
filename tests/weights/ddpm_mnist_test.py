"""The public MNIST U-Net: torch layouts, and its numbers if it is there."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parts import sources
from jaxdiff import weights
from jaxdiff.networks import ddpm_mnist
from jaxdiff.weights import ddpm_mnist as converter
from tests import ROOT

SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = SHARED / "weights" / "ddpm_mnist.npz"


def torch_arrays(seed=0):
  """Returns random weights under torch's names and in its layouts."""
  module = ddpm_mnist.DDPMMnist()
  x, c = jnp.zeros((1, *ddpm_mnist.SHAPE)), jnp.zeros(1)
  params = jax.eval_shape(module.init, jax.random.key(0), x, c)["params"]
  rng = np.random.default_rng(seed)
  arrays = {}
  for layer, leaves in params.items():
    for kind, leaf in leaves.items():
      shape = leaf.shape
      if layer.endswith("_ln"):
        shape = (shape[2], *shape[:2])
      elif len(shape) == 2:
        shape = shape[::-1]
      elif len(shape) == 4:
        size, size, fan_in, out = shape
        order = (fan_in, out) if layer.startswith("up") else (out, fan_in)
        shape = (*order, size, size)
      name, _ = converter._source((layer, kind))
      arrays[name] = (0.2 * rng.standard_normal(shape)).astype(np.float32)
  return arrays


def test_torch_names_are_those_of_the_state_dict():
  names = set(torch_arrays())
  assert len(names) == 170
  for name in (
    "network.te1.0.weight",
    "network.te_mid.2.bias",
    "network.b_mid.2.conv2.weight",
    "network.b_out.1.ln.bias",
    "network.down3.2.weight",
    "network.up1.0.weight",
    "network.up3.bias",
    "network.conv_out.weight",
  ):
    assert name in names


def test_a_transposed_convolution_scatters_its_kernel():
  # torch: out[s i - p + k] += x[i] w[k], for stride s and padding p
  arrays = torch_arrays()
  weight = arrays["network.up2.weight"]  # 20, 20, 4, 4; stride 2, padding 1
  kernel = converter._layout(weight, "up2", "kernel")
  x = np.random.default_rng(1).standard_normal((1, 3, 3, 20))
  full = np.zeros((8, 8, 20))
  for i in range(3):
    for j in range(3):
      patch = np.einsum("c,cokl->klo", x[0, i, j], weight)
      full[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
  conv = nn.Conv(20, (4, 4), padding=2, input_dilation=2, use_bias=False)
  got = conv.apply({"params": {"kernel": kernel}}, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got[0], full[1:7, 1:7], rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_are_named():
  arrays = torch_arrays()
  params = weights.ddpm_mnist.convert(arrays)
  assert set(params) >= {"b1_0_ln", "te_out_2", "conv_out"}
  lacking = {k: v for k, v in arrays.items() if k != "network.down2.bias"}
  with pytest.raises(ValueError, match=r"lack 'network\.down2\.bias'"):
    weights.ddpm_mnist.convert(lacking)
  wrong = arrays | {"network.down2.bias": np.zeros(21, np.float32)}
  with pytest.raises(ValueError, match=r"down2\.bias' has shape \(21,\)"):
    weights.ddpm_mnist.convert(wrong)
  with pytest.raises(ValueError, match=r"1 arrays .* use: \['other'\]"):
    weights.ddpm_mnist.convert(arrays | {"other": np.zeros(1)})


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not there")
def test_the_published_weights_have_their_published_errors():
  model = sources.pretrained(WEIGHTS)
  with np.load(SHARED / "mnist.npz") as held:
    x0 = held["x_test"][:256].reshape(-1, 28, 28, 1) / 127.5 - 1.0
  predict = jax.jit(lambda model, x, t: model(x, t).eps)
  for step, expected in [
    (10, 0.158),
    (100, 0.067),
    (300, 0.031),
    (500, 0.016),
    (900, 0.0025),
  ]:
    t = (step + 1) / 1000
    x, eps = model.process.perturb(jax.random.key(step), x0, t)
    error = np.mean(np.square(predict(model, x, t) - eps))
    # two digits of somebody else's draw; draws differ by up to 10 %, and
    # another network (a swapped layout, a missing norm) by a factor
    assert error == pytest.approx(expected, rel=0.2)
