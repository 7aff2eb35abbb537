"""Checkpoints: exact, atomic, and refusals that name what is wrong."""

import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import checkpoints
from tests import ROOT

# Threads of Orbax outlive a manager that is closed at once, and complain.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def state(value=1.0, width=3):
  return dict(
    params={"out": {"kernel": jnp.full((width, 2), value)}},
    half=jnp.asarray([1.0, 1e-3], jnp.bfloat16),
    key=jax.random.key(7),
    old_key=jax.random.PRNGKey(8),
    opt=(jnp.int32(3), None, {"nan": jnp.asarray([jnp.nan, -0.0])}),
  )


def bits(tree):
  raw = lambda v: jax.random.key_data(v) if checkpoints._is_key(v) else v
  leaves = [np.asarray(raw(v)) for v in jax.tree.leaves(tree)]
  return [(v.dtype, v.shape, v.tobytes()) for v in leaves]


def test_everything_comes_back_bit_for_bit(tmp_path):
  opened = checkpoints.open(tmp_path)
  position = {"epoch": 3, "seed": 2**70}
  opened.save(12, state(), position)
  back, where = opened.restore(state(0.0))
  assert bits(back) == bits(state())
  assert jax.tree.structure(back) == jax.tree.structure(state())
  assert back["key"].dtype == state()["key"].dtype
  assert where == position
  opened.close()


def test_a_template_of_shapes_is_enough(tmp_path):
  opened = checkpoints.open(tmp_path)
  opened.save(1, state())
  back, _ = opened.restore(jax.eval_shape(state))
  assert bits(back) == bits(state())
  part, _ = opened.restore({"params": state()["params"]})
  assert bits(part) == bits(state()["params"])
  opened.close()


def test_a_key_of_another_implementation_comes_back_as_one(tmp_path):
  opened = checkpoints.open(tmp_path)
  saved = dict(key=jax.random.key(7, impl="rbg"))
  opened.save(1, saved)
  back, _ = opened.restore(dict(key=jax.random.key(0, impl="rbg")))
  assert back["key"].dtype == saved["key"].dtype
  assert bits(back) == bits(saved)
  opened.close()


def test_a_step_that_exists_is_kept(tmp_path):
  opened = checkpoints.open(tmp_path)
  opened.save(1, state(), wait=True)
  opened.save(1, state(2.0), wait=True)
  assert bits(opened.restore(state(0.0))[0]) == bits(state())
  opened.close()


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  opened = checkpoints.open(tmp_path)
  change = jax.jit(lambda x: x * 0.0, donate_argnums=0)
  for step in range(3):
    x = jnp.full((512, 512), step + 1.0)
    opened.save(step, dict(x=x))
    change(x)
    back, _ = opened.restore(dict(x=jnp.zeros((512, 512))))
    np.testing.assert_array_equal(back["x"], step + 1.0)
  opened.close()


def test_the_latest_and_the_best_are_kept(tmp_path):
  opened = checkpoints.open(tmp_path, keep=2, best_metric="loss")
  for step, loss in enumerate([0.9, 0.2, float("nan"), 0.8, 0.5]):
    opened.save(step, state(), metrics=dict(loss=loss))
  opened.wait()
  assert opened.steps() == [1, 3, 4]
  assert (opened.latest(), opened.best()) == (4, 1)
  opened.close()
  again = checkpoints.open(tmp_path, keep=2, best_metric="loss")
  assert again.best() == 1
  with pytest.raises(ValueError, match="'loss', but metrics hold nothing"):
    again.save(5, state())
  again.close()


def wider():
  return state(width=4)


def other_name():
  return state() | {"params": {"out": {"weight": jnp.ones((3, 2))}}}


def smaller():
  return state() | {"opt": (jnp.int32(0),)}


def other_dtype():
  return state() | {"half": jnp.zeros(2)}


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (
      wider,
      r"float32\[3, 2\] at leaf params/out/kernel, but the model"
      r" has float32\[4, 2\]",
    ),
    (other_name, r"lacks the leaf params/out/weight of shape \(3, 2\)"),
    (smaller, r"has a leaf opt/2/nan, float32\[2\], that the model lacks"),
    (other_dtype, r"bfloat16\[2\] at leaf half"),
  ],
)
def test_another_models_checkpoint_is_refused(tmp_path, template, message):
  opened = checkpoints.open(tmp_path)
  opened.save(1, state())
  with pytest.raises(ValueError, match=message):
    opened.restore(template())
  assert opened.steps() == [1]  # and stays where it is
  opened.close()


def test_no_checkpoint_is_said_to_be_none(tmp_path):
  opened = checkpoints.open(tmp_path)
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    opened.restore(state())
  opened.save(3, state())
  with pytest.raises(FileNotFoundError, match="of step 4; it holds 3"):
    opened.restore(state(), step=4)
  opened.close()
  with pytest.raises(FileNotFoundError, match="no directory"):
    checkpoints.open(tmp_path / "absent", create=False)
  assert not (tmp_path / "absent").exists()


def half_written(directory, step):
  """Leaves what a run leaves that is killed while it writes."""
  folder = directory / f"{step}.orbax-checkpoint-tmp"
  (folder / "state.orbax-checkpoint-tmp").mkdir(parents=True)
  return folder


def test_a_half_written_checkpoint_is_ignored_beside_a_complete_one(tmp_path):
  opened = checkpoints.open(tmp_path)
  opened.save(3, state())
  opened.close()
  half_written(tmp_path, 4)
  opened = checkpoints.open(tmp_path)
  assert opened.latest() == 3
  back, _ = opened.restore(state(0.0))
  assert bits(back) == bits(state())
  opened.save(4, state(2.0), wait=True)
  assert opened.latest() == 4
  opened.close()


def test_a_half_written_checkpoint_alone_is_named(tmp_path):
  folder = half_written(tmp_path, 4)
  opened = checkpoints.open(tmp_path, create=False)
  with pytest.raises(ValueError, match=f"{folder.name} is half-written"):
    opened.restore(state())
  opened.close()


def spoil(folder):
  files = [f for f in folder.rglob("d/*") if f.is_file()]
  assert files
  for file in files:
    os.truncate(file, file.stat().st_size // 2)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
  opened = checkpoints.open(tmp_path)
  for step in (1, 2):
    opened.save(step, state(float(step)), {"step": step})
  opened.close()
  spoil(tmp_path / "2")
  opened = checkpoints.open(tmp_path)
  with pytest.warns(UserWarning, match="2 cannot be read .* step 1 is used"):
    back, position = opened.restore(state())
  assert position == {"step": 1}
  assert bits(back) == bits(state(1.0))
  opened.save(2, state(5.0), wait=True)  # its step can be written again
  assert bits(opened.restore(state())[0]) == bits(state(5.0))
  opened.close()
  spoil(tmp_path / "1")
  opened = checkpoints.open(tmp_path)
  with pytest.raises(ValueError, match="no checkpoint can be read"):
    opened.restore(state(), step=1)
  opened.close()


def test_reading_changes_nothing(tmp_path):
  opened = checkpoints.open(tmp_path)
  opened.save(1, state())
  opened.close()
  half_written(tmp_path, 2)
  before = sorted(tmp_path.rglob("*"))
  reader = checkpoints.open(tmp_path, create=False)
  reader.restore(state())
  with pytest.raises(ValueError, match="for reading"):
    reader.save(2, state())
  reader.close()
  assert sorted(tmp_path.rglob("*")) == before


def test_the_configuration_is_read_back(tmp_path):
  config = dict(model=dict(shape=[8, 8, 1], sigma_data=0.75), name="digits")
  checkpoints.write_config(tmp_path / "run", config)
  assert checkpoints.read_config(tmp_path / "run") == config
  assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]
  with pytest.raises(FileNotFoundError, match=r"no .*config\.json"):
    checkpoints.read_config(tmp_path)


def test_importing_does_not_load_orbax():
  code = (
    "import sys, jaxdiff, jaxdiff.checkpoints, jaxdiff.training;"
    "print('orbax' in sys.modules or 'orbax.checkpoint' in sys.modules)"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == "False"


def test_a_corrupt_configuration_names_its_path(tmp_path):
  (tmp_path / "config.json").write_text('{"model": ')
  with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
    checkpoints.read_config(tmp_path)


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
  """Files may not grow beyond 100 kB here, which a checkpoint does."""
  state = dict(w=jax.random.normal(jax.random.key(0), (300, 300)))
  opened = checkpoints.open(tmp_path)
  opened.save(1, state, wait=True)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    with pytest.raises(
      OSError, match=r"File too large.*step 1 is the last.*room"
    ):
      opened.save(2, state, wait=True)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  opened.close()
  again = checkpoints.open(tmp_path)
  back, _ = again.restore(state)
  np.testing.assert_array_equal(back["w"], state["w"])
  again.save(2, state, wait=True)
  assert again.steps() == [1, 2]
  again.close()
