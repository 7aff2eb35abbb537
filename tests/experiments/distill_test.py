"""experiments/distill.py: what it makes of configurations, and its mistakes."""

import inspect
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
from jaxdiff.predictions import Prediction


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


# What no command line can say, or an entry of all methods, or another option.
_NOT_OFFERED = {
  *("optimizer", "ema", "fake", "score", "adversary", "data", "table"),
  *("critic", "critic_optimizer", "gan", "gan_start"),
}
_HANDED_ON = {"dmd2": "dmd", "presto": "dmd2"}  # their further options


def _parameters(builder):
  found = dict(inspect.signature(getattr(distillation, builder)).parameters)
  if builder in _HANDED_ON:
    found = _parameters(_HANDED_ON[builder]) | found
  return {n: p for n, p in found.items() if p.kind != p.VAR_KEYWORD}


@pytest.mark.parametrize("name", configs.METHODS)
def test_entries_name_what_their_builders_take(name):
  """Every option has an entry, and every entry is an option."""
  config = configs.get_config(name)
  takes = configs.BUILDERS[config.builder]
  found = _parameters(config.builder)
  assert takes.teacher == ("teacher" in found)
  assert takes.fake == ("fake" in found)
  names = set(found) - {"teacher", "student"} - _NOT_OFFERED
  if name in _HANDED_ON:  # they make the generator themselves
    names -= {"grid"} if takes.generator else {"grid", "generator"}
  assert takes.generator == ("generator" in names)
  assert set(takes.times) == {n for n in names if n.endswith("times")}
  rates = {n for n in names if n.endswith("optimizer")}
  assert set(config.learning_rates) == rates
  assert set(config.options) | set(takes.filled) == names - rates


def test_a_configuration_is_no_other_s_rest():
  """What one method sets and another leaves unset stays unset."""
  before = configs.get_config("rcm").to_dict()
  configs.get_config("dmd2")
  configs.get_config("sid").lowest = 0.5
  assert configs.get_config("rcm").to_dict() == before
  assert before["start"] is None and before["lowest"] is None


@pytest.mark.parametrize(
  "entries",
  [
    dict(kind="one_step", start=2.5),
    dict(kind="backward_simulation", calls=2, start=4.0, lowest=0.8, last=True),
    dict(kind="noised_data", times=("uniform",)),
  ],
  ids=lambda entries: entries["kind"],
)
def test_a_generator_is_made_of_named_entries(entries):
  edm = processes.edm()
  model = oracles.exact(oracles.gaussian(np.ones(2), 0.1), edm)
  batch = {"image": np.zeros((4, 2), np.float32)}
  config = configs.get_config("sid")
  config.options.generator.update(entries)
  generate = distill.generator(config.options.generator.to_dict(), edm)
  assert generate(jax.random.key(1), model, batch).shape == (4, 2)


def test_where_a_generator_starts_is_a_noise_level():
  """As `start` of the sampler is; the time of it is another number for VP."""
  vp = processes.vp_linear()
  made = distill.generator(dict(kind="one_step", start=2.5), vp)
  asked = []
  model = lambda x, t: asked.append(t) or Prediction(x, x)
  made(jax.random.key(0), model, {"image": np.zeros((1, 2), np.float32)})
  assert float(vp.noise_level(asked[0])) == pytest.approx(2.5)


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


@pytest.mark.parametrize(
  ("entries", "said"),
  [
    (dict(kind="two_step"), "kind='two_step', but must be one of one_step"),
    (dict(start=4.0), "kind='', but must be one of"),
    (dict(kind="one_step", calls=4), "has calls, which one_step does not"),
    (dict(kind="noised_data"), "needs config.options.generator.times"),
    (dict(kind="backward_simulation"), "needs config.options.generator.calls"),
  ],
)
def test_mistakes_in_a_generator_are_named(entries, said):
  with pytest.raises(ValueError, match=said):
    distill.generator(entries, processes.edm())


def test_a_generator_given_by_place_is_told_the_named_entries():
  flag = "--config.options.generator"
  said = distill.by_place(["distill", f"{flag}=('one_step', 4.0)"])
  assert "by named entries" in said and "'start': 4.0" in said
  for right in (f"{flag}.calls=4", flag + "={'kind': 'one_step'}"):
    assert distill.by_place(["distill", right]) is None
