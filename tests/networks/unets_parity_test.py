"""Real pickles of NVIDIA's networks, written and run by their own code.

Needs torch (`make parity`), and JAXDIFF_REFERENCES, the name of a folder with
checkouts of NVIDIA's edm and edm2 as edm/ and edm2/. Without them the arrays in
golden/ stand for their outputs, in weights_test.py.
"""

import dataclasses
import os
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff import pickles
from jaxdiff import weights
from jaxdiff.networks import edm2
from tests.networks import reference_networks as reference
from tests.weights import weights_test

torch = pytest.importorskip("torch")
REFERENCES = os.environ.get("JAXDIFF_REFERENCES")
needs_references = pytest.mark.skipif(
  not REFERENCES, reason="JAXDIFF_REFERENCES names no folder of checkouts"
)


@needs_references
@pytest.mark.parametrize("name", reference.EDM)
def test_pickled_networks_denoise_as_their_own_code(name, tmp_path):
  net, shapes = reference.edm_network(pathlib.Path(REFERENCES), name)
  output = reference.edm_output(net, name)
  golden, same = reference.golden(name)
  assert shapes == same
  np.testing.assert_allclose(output["x0"], golden["x0"], rtol=1e-4, atol=1e-5)
  path = tmp_path / "network-snapshot-000100.pkl"
  with open(path, "wb") as f:  # as NVIDIA's training loops do
    pickle.dump(dict(ema=net, loss_fn=None, dataset_kwargs=dict(path="x")), f)
  converter = weights.edm2 if name.startswith("edm2") else weights.edm
  config, params = converter.load(path)
  model = dataclasses.replace(models.make_denoiser(config), params=params)
  error = np.abs(weights_test.denoised(model, golden, name) - output["x0"])
  size = np.abs(output["x0"]).max(axis=(1, 2, 3))
  assert (error.max(axis=(1, 2, 3)) <= 1e-5 * np.maximum(1, size)).all()


@needs_references
def test_half_precision_and_the_learned_log_variance(tmp_path):
  net, _ = reference.edm_network(pathlib.Path(REFERENCES), "edm2")
  path = tmp_path / "edm2-half.pkl"
  half = net.to(torch.float16)
  with open(path, "wb") as f:  # published so
    pickle.dump(dict(ema=half), f)
  _, params = weights.edm2.load(path)
  sigma = torch.from_numpy(reference.SIGMA)
  x = torch.zeros(len(sigma), 3, reference.SIZE, reference.SIZE)
  _, expected = half.to(torch.float32)(x, sigma, return_logvar=True)
  held = weights.edm2.load_log_variance(path)
  c = jnp.log(reference.SIGMA) / 4
  features = edm2.fourier(c, held["freqs"], held["phases"])
  layer = edm2.MPDense(1)
  found = layer.apply({"params": dict(weight=held["weight"])}, features)
  np.testing.assert_allclose(found[:, 0], expected.flatten(), atol=1e-5)
  assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_torch_save_are_read(zipped, tmp_path):
  draw = torch.Generator().manual_seed(0)
  whole = torch.randn(6, 4, generator=draw)
  state = dict(
    whole=whole,
    view=whole[1:, ::2].T,  # shares its storage
    half=whole.to(torch.float16),
    brain=whole.to(torch.bfloat16),
    steps=torch.arange(3),
    parameter=torch.nn.Parameter(whole[0]),
    empty=torch.zeros(0, 3),
    lr=0.1,
  )
  path = tmp_path / "state.pt"
  torch.save(state, path, _use_new_zipfile_serialization=zipped)
  found = pickles.load(path)
  assert list(found) == list(state)
  assert found["lr"] == 0.1
  for name, value in state.items():
    if name != "lr":
      expected = value.detach().to(torch.float32).numpy()
      np.testing.assert_array_equal(
        np.asarray(found[name], np.float32), expected
      )
  data = path.read_bytes()
  for length in range(0, len(data), 7):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match="cannot be read"):
      pickles.load(path)
