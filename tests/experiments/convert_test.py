"""experiments/convert.py: from a file to a run folder that all scripts read."""

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import convert
from experiments import sample
from jaxdiff import models
from jaxdiff import training

CONFIG = models.ModelConfig(
  shape=(4, 4, 1), network="mlp", network_options=dict(features=(8,))
)


@pytest.fixture(scope="module")
def model():
  """Returns a small denoiser none of whose parameters is zero."""
  made = models.make_denoiser(CONFIG)
  draw = np.random.default_rng(0)
  fill = lambda v: jnp.asarray(0.3 * draw.normal(size=v.shape), v.dtype)
  return dataclasses.replace(made, params=jax.tree.map(fill, made.params))


def test_what_was_written_is_what_the_scripts_read(model, tmp_path):
  out = tmp_path / "run"
  convert.write(out, CONFIG, model.params)
  found = training.load_denoiser(out)
  assert jax.tree.all(jax.tree.map(np.array_equal, found.params, model.params))
  table = sample.table_for(found.process, "ddim", "karras", 2)
  assert sample.draw(found, table, CONFIG.shape, num=2)[0].shape == (2, 4, 4, 1)
  with pytest.raises(ValueError, match="holds a model already"):
    convert.write(out, CONFIG, model.params)


def test_the_check_shows_errors_where_there_are_images(model):
  draw = np.random.default_rng(0)
  images = 0.5 * draw.normal(size=(8, 4, 4, 1)).astype(np.float32)
  names, *rows = convert.check(model, CONFIG.shape, images).splitlines()
  assert names.endswith("error eps")
  values = np.array([row.split() for row in rows], float)
  assert values.shape == (5, 5)
  noise, _, _, of_x0, of_eps = values.T
  assert (np.diff(noise) > 0).all()
  # alpha (x0 - x0') + sigma (eps - eps') = 0 for every prediction
  np.testing.assert_allclose(of_x0, noise * of_eps, rtol=1e-2, atol=2e-4)
  bare = convert.check(model, CONFIG.shape).splitlines()
  assert len(bare[1].split()) == 3
  with pytest.raises(ValueError, match="images of shape"):
    convert.check(model, (4, 4, 3), images)
  spoilt = jax.tree.map(lambda v: v * np.nan, model.params)
  with pytest.raises(ValueError, match="not finite"):
    convert.check(dataclasses.replace(model, params=spoilt), CONFIG.shape)


def test_files_tell_their_format(tmp_path):
  assert convert.guess(_touch(tmp_path / "weights.npz")) == "ddpm_mnist"
  assert convert.guess(_touch(tmp_path / "checkpoint_8")) == "score_sde"
  folder = tmp_path / "pipeline"
  path = _touch(folder / "unet" / "config.json")
  path.write_text(json.dumps(dict(_class_name="UNet2DModel")))
  assert convert.guess(folder) == "diffusers_unet"
  assert convert.guess(folder / "unet") == "diffusers_unet"
  path.write_text(json.dumps(dict(_class_name="Other")))
  with pytest.raises(ValueError, match="it is 'Other'"):
    convert.guess(folder)
  with pytest.raises(ValueError, match="no config.json"):
    convert.guess(tmp_path)
  with pytest.raises(FileNotFoundError, match="check --source"):
    convert.guess(tmp_path / "missing")
  path = tmp_path / "other.pkl"
  path.write_bytes(pickle.dumps(dict(step=1)))
  with pytest.raises(ValueError, match="EDMPrecond.*, Precond"):
    convert.guess(path)
  with pytest.raises(ValueError, match=r"--config=vp/c.* format edm .* leave"):
    convert.load("edm", path, config="vp/cifar10_ddpmpp", heads=None)
  state = _touch(tmp_path / "DiT-XL-2.pt")
  with pytest.raises(ValueError, match=r"of which network.* dit_pt, sit_pt, u"):
    convert.guess(state)
  with pytest.raises(ValueError, match="format uvit_pt need --heads"):
    convert.load("uvit_pt", state, config=None, heads=None)


def _touch(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch()
  return path


def test_a_model_is_described_in_lines():
  config = dataclasses.replace(
    CONFIG, num_classes=3, process_options=dict(sigma_min=0.01, betas=[0.1] * 5)
  )
  text = convert.describe(config, dict(a=np.zeros(1234)))
  assert "mlp, 1,234 parameters, 3 classes" in text
  assert "edm(sigma_min=0.01, 5 betas)" in text
