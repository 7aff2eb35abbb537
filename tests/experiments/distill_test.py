"""experiments/distill.py: what it makes of configurations, and its mistakes."""

import json

import chex
import jax
import numpy as np
import pytest

from experiments import distill
from experiments.configs import distill as configs
from jaxdiff import distillation
from jaxdiff import models
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import training


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A run folder of a tiny, untrained teacher of points with two classes."""
  from jaxdiff import checkpoints

  folder = tmp_path_factory.mktemp("teacher")
  rng = np.random.default_rng(0)
  np.savez(
    folder / "a.npz",
    image=rng.normal(size=(64, 2)).astype(np.float32),
    label=(np.arange(64) % 2).astype(np.int32),
  )
  model = models.ModelConfig(
    shape=(2,),
    network="mlp",
    network_options=dict(features=(8,), embedding=8),
    num_classes=2,
    process_options=dict(sigma_min=0.02, sigma_max=20.0),
    dataset=f"npz:{folder}/a.npz",
  )
  params = models.make_denoiser(model, jax.random.key(0)).params
  directory = models.checkpoint_directory(folder)
  models.save_config(directory, model)
  opened = checkpoints.open(directory)
  opened.save(1, {"ema_params": params})
  opened.close()
  return folder


def small(method, teacher, **changes):
  config = configs.get_config(method)
  config.update(
    dict(teacher=str(teacher), steps=2, batch_size=8, samples=16, calls=(1,))
    | dict(checkpoint_every=1, log_every=1)
    | changes
  )
  return config


def test_a_run_leaves_a_student_pictures_and_measures(teacher, tmp_path):
  config = small("dmd", teacher)
  config.options.fake_steps = 2
  model = distill.distil(config, tmp_path, progress=False)
  again = training.load_denoiser(tmp_path)
  chex.assert_trees_all_equal(model.params, again.params)
  rows = (tmp_path / "quality.csv").read_text().splitlines()
  assert rows[0] == "step,distance_1"
  assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
  assert "fake/loss" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
  assert (tmp_path / "samples_1.png").stat().st_size > 1000
  text = distill.report(config, tmp_path)
  assert "student, dmd" in text
  # run again it has nothing to do, and with more steps it goes on
  config.steps = 3
  distill.distil(config, tmp_path, progress=False)
  assert "\n3," in (tmp_path / "quality.csv").read_text()


def test_a_student_of_another_method_is_not_overwritten(teacher, tmp_path):
  distill.distil(small("imitation", teacher), tmp_path, progress=False)
  jumping = small("imitation", teacher, jumps=True)
  with pytest.raises(ValueError, match="holds a model with jumps = False"):
    distill.distil(jumping, tmp_path, progress=False)


@pytest.mark.parametrize("name", configs.METHODS)
def test_every_method_is_built_from_its_configuration(name, teacher):
  config = small(name, teacher)
  on = distill.task(config)
  model, begin = distill.student(config, on, teacher)
  assert model.jumps == config.jumps == begin.jumps
  made = distill.method(config, on, begin)
  assert isinstance(made, distillation.Method)
  assert "student" in made.players
  json.dumps(config.to_dict(), default=str)


def test_a_student_unlike_the_exact_teacher_s_copy_gets_a_fake_score(tmp_path):
  """Neither the student, a map without time, nor the law can be its start."""
  config = small("sign", "mixture", imitation_steps=1, batch_size=4)
  model = distill.distil(config, tmp_path, progress=False)
  assert model.time == "none"
  start = training.load_denoiser(tmp_path / "start")
  assert start.time != "none" and not start.jumps


def test_options_become_what_a_builder_takes():
  edm = processes.edm()
  times = distill._option("fake_times", ("log_normal", -1.0, 1.0), edm)
  assert times(jax.random.key(0), 3).shape == (3,)
  grid = distill._option("grid", (5,), edm)
  assert grid.shape == (6,)
  model = oracles.exact(oracles.gaussian(np.ones(2), 0.1), edm)
  batch = {"image": np.zeros((4, 2), np.float32)}
  for spec in (
    ("one_step", 2.5),
    ("backward_simulation", 2, 4.0, 0.8, True),
    ("noised_data", "uniform"),
  ):
    generate = distill._option("generator", spec, edm)
    assert generate(jax.random.key(1), model, batch).shape == (4, 2)


def test_mistakes_are_named(teacher):
  with pytest.raises(ValueError, match="must be one of .*dmd"):
    configs.get_config("dmdd")
  config = small("dmd", teacher)
  on = distill.task(config)
  _, begin = distill.student(config, on, teacher)
  config.options.foo = 1
  with pytest.raises(ValueError, match="have foo, which dmd does not take"):
    distill.method(config, on, begin)
  config = small("dmd", "mixture", guidance_scale=2.0)
  with pytest.raises(ValueError, match="without classes"):
    distill.task(config)
  config = small("dmd", teacher, builder="nothing")
  with pytest.raises(ValueError, match="no function of"):
    distill.method(config, on, begin)
