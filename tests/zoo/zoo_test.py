"""The zoo: what is shipped is what its cards and its README say."""

import dataclasses
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from experiments.pages import zoo as script
from jaxdiff import data
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import zoo

FOLDER = pathlib.Path(zoo.__file__).parent


def tiny():
  """A model config, and parameters that round in float16."""
  config = models.ModelConfig(
    shape=(2,),
    network="mlp",
    network_options=dict(features=[8], embedding=4),
    process="rectified_flow",
    prediction="flow",
    dataset="digits",
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    models.make_denoiser(config).params,
  )
  return config, params


def test_the_zoo_is_small_and_its_table_is_that_of_its_files():
  assert set(zoo.names()) == set(script.RECIPES)
  assert sum(p.stat().st_size for p in FOLDER.glob("*.npz")) <= 2_000_000
  assert (FOLDER / "README.md").read_text() == script.readme()


@pytest.mark.parametrize("name", zoo.names())
def test_a_card_tells_what_its_command_trains(name):
  card = zoo.describe(name)
  config = script.configuration(name)
  assert f"--name={name} " in card.record["command"]
  assert card.record["seed"] == config.seed
  assert card.record["steps"] == config.steps
  assert card.config.process == config.process
  assert card.config.num_classes == config.num_classes
  options = json.loads(json.dumps(config.network_options.to_dict()))
  assert card.config.network_options == options
  model = zoo.load(name)
  leaves = jax.tree.leaves(model.params)
  assert sum(leaf.size for leaf in leaves) == card.parameters
  assert all(leaf.dtype == np.float32 for leaf in leaves)
  assert str(card.parameters // 1000) in str(card)


def test_a_model_comes_back_as_float16_rounds_it(tmp_path):
  config, params = tiny()
  record = {"command": "none", "seed": 1}
  zoo.write(tmp_path / "a.npz", config, params, record)
  zoo.write(tmp_path / "b.npz", config, params, record)
  one, two = (tmp_path / f"{name}.npz" for name in "ab")
  assert one.read_bytes() == two.read_bytes()
  model = zoo.load(one)
  expected = jax.tree.map(
    lambda p: p.astype(np.float16).astype(np.float32), params
  )
  chex.assert_trees_all_equal(model.params, expected)
  card = zoo.describe(one)
  assert (card.config, card.record) == (config, record)
  assert model.process == jd.rectified_flow()


def test_what_is_no_model_is_refused(tmp_path):
  config, params = tiny()
  path = tmp_path / "a.npz"
  with pytest.raises(FileNotFoundError, match="no 'cat'; it has 'digits'"):
    zoo.load("cat")
  path.write_bytes(b"text")
  with pytest.raises(ValueError, match=r"a\.npz. is not an \.npz archive"):
    zoo.load(path)
  np.savez(path, x=np.zeros(3))
  with pytest.raises(ValueError, match="no entry 'card'.*convert"):
    zoo.load(path)
  other = dataclasses.replace(config, network_options=dict(features=(16,)))
  zoo.write(path, other, params, {})
  with pytest.raises(ValueError, match=r"has shape \(.*8.*\) in the file and"):
    zoo.load(path)
  large = jax.tree.map(lambda p: 1e5 * jnp.ones_like(p), params)
  with pytest.raises(ValueError, match="which float16 cannot store"):
    zoo.write(path, config, large, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_samples_are_as_good_as_the_card_says(name):
  # The record's own measure, anew, and a bar that is not the record's: samples
  # are nearer to the data than shuffled labels or pixels could make them.
  card = zoo.describe(name)
  config = card.config
  found = script.measures(zoo.load(name), config)
  assert abs(found["frechet"] - card.record["frechet"]) < 0.01
  images = data.load(config.dataset, **config.dataset_options)["image"]
  n = found["samples of each"]
  rng = np.random.default_rng(0)
  mixed = rng.permuted(images[:n].reshape(n, -1), axis=0)
  scrambled = metrics.random_feature_frechet(mixed, images[-n:].reshape(n, -1))
  assert found["frechet"] < 0.5 * scrambled
