"""The wheel, installed without extras, away from any checkout.

The environment takes its dependencies from the one that runs the tests. What
only an extra brings is made to be missing there, so that nothing can use it.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
import pytest
from packaging import requirements

from tests import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)

pytestmark = pytest.mark.slow

BLOCKER = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {names!r}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def needed(lines, extras=("",)):
  """Returns the distributions of requirements, and all that these need."""
  found = {}
  queue = [(line, extras) for line in lines]
  while queue:
    line, wanted = queue.pop()
    parsed = requirements.Requirement(line)
    name = re.sub(r"[-_.]+", "-", parsed.name).lower()
    marker = parsed.marker
    if marker and not any(marker.evaluate({"extra": e}) for e in wanted):
      continue
    own = ("", *parsed.extras)
    if set(own) <= found.get(name, set()):
      continue
    found.setdefault(name, set()).update(own)
    try:
      more = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue
    queue += [(line, own) for line in more]
  return set(found)


def modules_of(distributions):
  """Returns the top-level modules that distributions bring."""
  plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  return {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if {plain(owner) for owner in owners} & distributions
  }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of this checkout, built from a copy of it."""
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  source.mkdir()
  for name in ("jaxdiff", "experiments"):
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, source / name, ignore=skip)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q"]
  done = subprocess.run(
    [*build, "-w", folder, source], capture_output=True, text=True
  )
  if done.returncode and "No matching distribution" in done.stderr:
    pytest.skip("pip finds no setuptools to build with")
  assert not done.returncode, done.stderr
  (path,) = folder.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
  """A folder with an environment that the wheel is installed in."""
  folder = tmp_path_factory.mktemp("home")
  subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
  python = folder / "env" / "bin" / "python"
  subprocess.run(
    [python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True
  )
  (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
  with zipfile.ZipFile(wheel) as f:
    (name,) = [n for n in f.namelist() if n.endswith(".dist-info/METADATA")]
    text = f.read(name).decode()
  lines = re.findall(r"^Requires-Dist: (.*)$", text, re.M)
  extras = re.findall(r"^Provides-Extra: (.*)$", text, re.M)
  base = needed(lines)
  missing = modules_of(needed(lines, extras) - base) - modules_of(base)
  assert {"matplotlib", "sklearn", "PIL", "tensorboardX"} <= missing
  assert not missing & {"jax", "numpy", "orbax", "tqdm", "absl"}
  (packages / "missing_extras.py").write_text(BLOCKER.format(names=missing))
  (packages / "zz.pth").write_text(
    f"{sysconfig.get_path('purelib')}\nimport missing_extras\n"
  )
  # packages of the user, of names that are not ours to take
  for name in ("experiments", "configs", "tests"):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('a user's')")
  return folder


def run(home, *command, check=True, script=True):
  done = subprocess.run(
    [home / "env" / "bin" / ("jaxdiff" if script else "python"), *command],
    cwd=home,
    # the user's own packages come first
    env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(home)),
    capture_output=True,
    text=True,
  )
  if check:
    assert done.returncode == 0, done.stderr[-3000:]
  return done


def test_the_wheel_claims_one_name_and_has_all_scripts(wheel):
  with zipfile.ZipFile(wheel) as f:
    names = f.namelist()
    (entry,) = [n for n in names if n.endswith("entry_points.txt")]
    assert "jaxdiff = jaxdiff.experiments.parts.command:main" in f.read(
      entry
    ).decode().replace("  ", " ")
  tops = {name.split("/")[0] for name in names}
  assert {t for t in tops if not t.endswith(".dist-info")} == {"jaxdiff"}
  scripts = {
    str(path.relative_to(ROOT / "experiments"))
    for path in (ROOT / "experiments").rglob("*.py")
  }
  assert scripts == {
    name.removeprefix("jaxdiff/experiments/")
    for name in names
    if name.startswith("jaxdiff/experiments/")
  }
  assert "jaxdiff/zoo/digits.npz" in names


def test_every_command_says_what_it_does(home):
  listed = run(home, "--help").stdout
  commands = re.findall(r"^  ([a-z-]+(?: [a-z-]+)?)  ", listed, re.M)
  assert {"train", "sample", "evaluate", "evidence", "peers"} <= set(commands)
  assert len(commands) >= 20
  for name in commands:
    done = run(home, *name.split(), "--help", check=False)
    assert "Traceback" not in done.stderr, (name, done.stderr[-2000:])
    assert "flags:" in done.stdout, (name, done.stdout, done.stderr)


def test_the_programs_of_the_readme_run(home):
  setup = (
    "import jax, jaxdiff as jd, jax.numpy as jnp\n"
    "import flax.linen as nn\n"
    "class Net(nn.Module):\n"
    "  @nn.compact\n"
    "  def __call__(self, x, c, label=None):\n"
    "    return nn.Dense(x.shape[-1])(x) + c[:, None, None, None]\n"
    "from flax import nnx\n"
    "class Module(nnx.Module):\n"
    "  def __init__(self, rngs):\n"
    "    self.drop = nnx.Dropout(0.5, rngs=rngs)\n"
    "  def __call__(self, x, c, label=None):\n"
    "    return self.drop(x) + c[:, None, None, None]\n"
    "module = Module(nnx.Rngs(0))\n"
    "net, key, process = Net(), jax.random.key(0), jd.edm()\n"
    "images, labels = jnp.zeros((4, 2, 2, 3)), jnp.arange(4)\n"
    "params = net.init(key, images, jnp.zeros(4))['params']\n"
  )
  for program in BLOCKS:
    first = program is BLOCKS[0]
    run(home, "-c", program if first else setup + program, script=False)
  assert len(BLOCKS) >= 3


def test_it_trains_and_samples(home):
  draw = np.random.default_rng(0)
  np.savez(home / "points.npz", image=draw.normal(size=(64, 2)))
  before = sorted((home / "env").rglob("*.npz"))
  train = (
    "train",
    "--config=npz",
    "--workdir=run",
    "--config.dataset=npz:points.npz",
    "--config.network=residual_mlp",
    "--config.network_options={'width': 8, 'blocks': 1, 'embedding': 8}",
    "--config.steps=4",
    "--config.batch_size=8",
  )
  refused = run(home, *train, check=False)
  assert refused.returncode == 1 and "Traceback" not in refused.stderr
  assert 'pip install "jaxdiff[train]"' in refused.stderr
  done = run(home, *train, "--config.tensorboard=False")
  assert "Trained: run" in done.stdout
  assert 'pip install "jaxdiff[plots]"' in done.stdout
  assert (home / "run" / "metrics.csv").is_file()
  sample = ("sample", "--workdir=run", "--num=6", "--calls=4")
  for solver in ("default", "heun_churn(churn=4)", "dpm_solver_v3(order=2)"):
    done = run(home, *sample, f"--solver={solver}", f"--out={solver[:4]}")
    assert "Wrote" in done.stdout
    with np.load(home / solver[:4] / "samples.npz") as held:
      assert held["image"].shape == (6, 2)
      assert np.isfinite(held["image"]).all()
  refused = run(home, "pages", "learned", "--cells=", "--publish", check=False)
  assert "installed package" in refused.stderr
  run(home, "pages", "learned", "--cells=")
  assert (home / "runs" / "learned" / "learned.md").is_file()
  assert sorted((home / "env").rglob("*.npz")) == before
