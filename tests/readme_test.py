"""What the README's first screen promises is true."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxdiff as jd
from experiments.pages import held_out
from tests import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_fifteen_line_program_runs_and_prints_what_it_says(capsys):
  program = BLOCKS[0]
  assert len(program.strip().splitlines()) <= 15
  exec(compile(program, "README.md", "exec"), {})
  numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)
  # 25 means of standard deviation sqrt(1/2) each way, and 0.05 of their own
  np.testing.assert_allclose(list(map(float, numbers)), 0.71, atol=0.03)
  assert len(numbers) == 2


def test_the_solver_of_the_readme_is_a_solver():
  (program,) = [block for block in BLOCKS if "def my_solver" in block]
  scope = {"jd": jd}
  exec(compile(program, "README.md", "exec"), scope)
  edm = jd.edm()
  table = scope["my_solver"](edm, jd.grids.karras(edm, 8, to_zero=True))
  assert table.nfe == 8


def test_the_recipes_of_the_readme_run():
  (program,) = [block for block in BLOCKS if "image to image" in block]

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, c, label=None):
      return nn.Dense(x.shape[-1])(x) + c[:, None, None, None]

  class Module(nnx.Module):
    def __init__(self, rngs):
      self.norm = nnx.BatchNorm(3, rngs=rngs)
      self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, c, label=None):
      return self.drop(self.norm(x)) + c[:, None, None, None]

  net = Net()
  images = jnp.zeros((4, 2, 2, 3))
  params = net.init(jax.random.key(0), images, jnp.zeros(4))["params"]
  scope = dict(
    jd=jd,
    jax=jax,
    net=net,
    module=Module(nnx.Rngs(0)),
    params=params,
    images=images,
    key=jax.random.key(0),
    labels=jnp.arange(4),
  )
  exec(compile(program, "README.md", "exec"), scope)
  assert scope["x"].shape == images.shape
  assert scope["previews"].shape == (20, *images.shape)
  assert scope["guided"](images, jnp.float32(0.5)).x0.shape == images.shape


def test_every_path_that_the_readme_names_is_there():
  for path in re.findall(r"\]\(([^)#]+)\)", README):
    assert (ROOT / path).exists(), path
  for module in re.findall(r"python -m ([\w.]+)", README):
    if "NAME" not in module:
      assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
  for config in re.findall(r"--config=(\S+\.py)", README):
    assert (ROOT / config).exists(), config


def test_every_public_name_is_documented():
  """Functions and classes that the package hands on have docstrings."""
  for name in jd.__all__:
    thing = getattr(jd, name)
    assert thing.__doc__ and thing.__doc__.strip(), name


def test_what_the_readme_counts_is_there():
  told = lambda what: int(re.search(rf"(\d+) {what}", README)[1])
  assert told("solvers as tables") == len(jd.solvers.specs.named())
  methods = [*(ROOT / "jaxdiff" / "distillation").glob("[a-z]*.py")]
  methods += [ROOT / "jaxdiff" / "distillation" / "transition_matching"]
  assert told("methods, a whole update") == len(methods)
  notebooks = [p.stem for p in (ROOT / "colabs").glob("*.ipynb")]
  assert all(f"colabs/{name}.ipynb" in README for name in notebooks)


def test_what_the_readme_says_of_choose_and_default_was_measured():
  found = json.loads(
    (ROOT / "experiments" / "results" / "held_out.json").read_text()
  )
  text = " ".join(README.split())
  for column in ("choose", "default"):
    assert held_out.claim(found, column) in text, column
