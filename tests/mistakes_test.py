"""Likely mistakes at the public doors, one row of a table each.

Every row is refused before anything compiles, by an error that is raised in
this library and says what was given, what was expected and how to mend it.
"""

import dataclasses
import functools
import math
import pathlib
import traceback
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import densities
from jaxdiff import distillation
from jaxdiff import interpolants
from jaxdiff import learning
from jaxdiff import likelihood
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import parallel
from jaxdiff import phase_space
from jaxdiff import processes
from jaxdiff import quantization
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import training
from jaxdiff import zoo

HOME = pathlib.Path(jd.__file__).parent
EDM = jd.edm()
GRID = jd.grids.karras(EDM, 5)
TABLE = jd.ddim(EDM, GRID)
SGD = optax.sgd(0.1)


def toy(x, t):
  """A model that answers with its input."""
  return jd.Prediction(x, jnp.zeros_like(x))


class Dense(nn.Module):
  """A network of one layer."""

  width: int = 3
  num_classes: int = 0

  @nn.compact
  def __call__(self, x, c, label=None):
    del c, label
    return nn.Dense(self.width)(x)


@functools.cache
def held() -> types.SimpleNamespace:
  """What the rows are called with; made once, for it compiles."""
  key = jax.random.key(0)
  x = jnp.ones((2, 3))
  params = Dense().init(key, x, None)["params"]
  mixture = jd.oracles.mixture(np.eye(3), np.ones(3))
  config = models.ModelConfig(
    (3,), "mlp", dict(features=(4,), embedding=8), num_classes=3
  )
  classes = models.make_denoiser(config, key)
  state = training.init_state(key, params, SGD)
  denoiser = jd.from_linen(Dense(), params, EDM)
  jd.sample(key, toy, TABLE, (2, 3), process=EDM)  # warms what is eager
  return types.SimpleNamespace(
    key=key,
    raw=jax.random.PRNGKey(0),
    keys=jax.random.split(key, 3),
    x=x,
    params=params,
    mixture=mixture,
    exact=jd.exact(mixture, EDM),
    config=config,
    classes=classes,
    abstract=models.make_denoiser(config),
    denoiser=denoiser,
    state=state,
    mesh=parallel.data_mesh(1),
    ints=jnp.ones((2, 3), jnp.int32),
    nan=jnp.full((), jnp.nan),
    empty=jnp.zeros((0, 3)),
    three=jnp.arange(3),
    halves=jnp.asarray([0.5, 1.5]),
    update=training.make_update(lambda k, p, b: (0.0, {}), SGD),
    other=Dense(4).init(key, jnp.ones((2, 4)), None)["params"],
  )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Files and folders that somebody left."""
  folder = tmp_path_factory.mktemp("files")
  (folder / "empty.npz").write_bytes(b"")
  (folder / "text.npz").write_text("not an archive")
  (folder / "folder.npz").mkdir()
  (folder / "loop.npz").symlink_to(folder / "back.npz")
  (folder / "back.npz").symlink_to(folder / "loop.npz")
  np.savez(folder / "objects.npz", image=np.array([{"a": 1}, None], object))
  np.savez(folder / "image.npz", image=np.zeros((2, 4, 4, 1)))
  np.savez(folder / "damaged.npz", image=np.arange(64.0).reshape(4, 16))
  whole = bytearray((folder / "damaged.npz").read_bytes())
  whole[200] ^= 0xFF  # the checksum of the array no longer fits
  (folder / "damaged.npz").write_bytes(whole)
  np.save(folder / "single.npy", np.zeros(3))
  pictures = folder / "pictures"
  (pictures / "a").mkdir(parents=True)
  (pictures / "a" / "again").symlink_to(pictures)
  (folder / "nothing").mkdir()
  (folder / "notes").mkdir()
  (folder / "notes" / "notes.txt").write_text("words")
  bad = folder / "run" / "checkpoints"
  bad.mkdir(parents=True)
  (bad / "config.json").write_text("{ not json")
  return folder


def sample(**changes):
  """Calls `sample` with one argument wrong."""
  given = dict(key=held().key, model=toy, tableau=TABLE, x=held().x)
  return jd.sample(**(given | changes))


def collector(init, update):
  return sampling.Collector(init, update)


def solve(name, **options):
  return getattr(jd.solvers, name)(EDM, GRID, **options)


def edm_method(build, **options):
  h = held()
  student = h.classes
  return build(h.classes, student, optimizer=SGD, **options)


# (name, call, exception, fragments of the message). `h` is what `held` made,
# `f` the folder of files.
DOORS = [
  # keys
  ("key: a number", lambda h: sample(key=0), TypeError, ["PRNG key", "got 0", "jax.random.key(0)"]),
  ("key: None", lambda h: sample(key=None), TypeError, ["PRNG key", "got None", "jax.random.key(0)"]),
  ("key: a batch", lambda h: sample(key=h.keys), ValueError, ["one PRNG key", "batch of keys [3]", "jax.vmap"]),
  ("key: a batch of raw keys", lambda h: sample(key=np.stack([h.raw, h.raw])), ValueError, ["one PRNG key", "[2]", "jax.vmap"]),
  ("key: a raw key of another kind", lambda h: sample(key=np.zeros(4, np.uint32)), ValueError, ["uint32[4]", "uint32[2]", "jax.random.key(0)"]),
  ("key: floats", lambda h: sample(key=h.halves), TypeError, ["PRNG key", "float32[2]", "jax.random.key(0)"]),
  ("key and model swapped", lambda h: jd.sample(toy, h.key, TABLE, h.x), TypeError, ["PRNG key", "the function toy"]),
  ("key: langevin", lambda h: samplers.langevin(1, lambda x: -x, 2, h.x, step=0.1), TypeError, ["langevin(key, score, steps, x, step=...)", "got 1", "jax.random.key"]),
  ("key: likelihood", lambda h: likelihood.log_likelihood(None, toy, EDM, h.x), TypeError, ["PRNG key", "got None", "jax.random.key"]),
  ("key: picard", lambda h: samplers.picard(7, toy, TABLE, h.x, process=EDM), TypeError, ["PRNG key", "got 7", "jax.random.key"]),
  ("key: init_state", lambda h: training.init_state(0, h.params, SGD), TypeError, ["PRNG key", "got 0", "jax.random.key"]),
  ("key: make_denoiser", lambda h: models.make_denoiser(h.config, 3), TypeError, ["PRNG key", "got 3"]),
  ("key: run", lambda h: jd.run(3, lambda k, r, s: (s, None), jnp.arange(3), h.x), TypeError, ["PRNG key", "got 3"]),
  ("key: dequantize", lambda h: likelihood.dequantize(0, h.ints), TypeError, ["PRNG key", "got 0"]),
  ("key: prior", lambda h: EDM.prior(0, (2, 3)), TypeError, ["PRNG key", "got 0"]),
  ("key: perturb", lambda h: EDM.perturb(0, h.x, 1.0), TypeError, ["PRNG key", "got 0"]),
  # samples and shapes
  ("x: a number", lambda h: sample(x=3), TypeError, ["batch of samples", "got 3", "(batch, ...)"]),
  ("x: None", lambda h: sample(x=None), TypeError, ["batch of samples", "got None", "(batch, ...)"]),
  ("x: a string", lambda h: sample(x="noise"), TypeError, ["'noise'", "(batch, ...)"]),
  ("x: batch 0", lambda h: sample(x=h.empty), ValueError, ["no sample", "length 0", "leave out"]),
  ("x: shape of batch 0", lambda h: sample(x=(0, 3), process=EDM), ValueError, ["(0, 3)", "at least 1", "batch"]),
  ("x: shape ()", lambda h: sample(x=(), process=EDM), ValueError, ["()", "the first is the batch"]),
  ("x: negative shape", lambda h: sample(x=(-1, 3), process=EDM), ValueError, ["(-1, 3)", "at least 1"]),
  ("x: one number for a batch", lambda h: sample(x=h.nan), ValueError, ["scalar", "x[None]"]),
  ("x: integers", lambda h: sample(x=h.ints), TypeError, ["int32", "floating point", "127.5"]),
  ("x: abstract", lambda h: sample(x=jax.ShapeDtypeStruct((2, 3), jnp.float32)), TypeError, ["float32[2, 3]", "(batch, ...)"]),
  ("x: a shape without a process", lambda h: sample(x=(2, 3)), ValueError, ["(2, 3)", "process=..."]),
  ("x: batch 0 in picard", lambda h: samplers.picard(h.key, toy, TABLE, h.empty, process=EDM), ValueError, ["no sample", "leave out"]),
  ("x: batch 0 in adaptive", lambda h: samplers.adaptive(h.key, toy, None, h.empty, process=EDM), ValueError, ["no sample", "leave out"]),
  ("index of another batch", lambda h: sample(index=h.three), ValueError, ["(2,)", "(3,)"]),
  ("index of floats", lambda h: sample(index=h.halves), TypeError, ["index", "float32"]),
  ("index beyond int32", lambda h: sample(index=np.array([0, 2**32])), ValueError, ["int32", "4294967296", "fold_in"]),
  ("index below int32, in a list", lambda h: sample(index=[0, -(2**40)]), ValueError, ["int32", "-1099511627776"]),
  ("index beyond int32 in noise", lambda h: EDM.prior(h.key, (2, 3), index=np.array([0, 2**32])), ValueError, ["int32", "4294967296"]),
  ("index beyond int64", lambda h: sample(index=[0, 2**70]), ValueError, ["int32", str(2**70)]),
  ("index beyond int32 in langevin", lambda h: samplers.langevin(h.key, lambda x: -x, 2, h.x, step=0.1, index=np.array([0, 2**32])), ValueError, ["int32", "4294967296"]),
  ("prior: a shape that is a number", lambda h: EDM.prior(h.key, 3), TypeError, ["shape", "got 3"]),
  # sample's other arguments
  ("model: a table", lambda h: jd.sample(h.key, TABLE, toy, h.x), TypeError, ["takes a model", "Tableau"]),
  ("model: parameters", lambda h: sample(model=h.params), TypeError, ["takes a model", "got dict", "from_linen"]),
  ("model: a module", lambda h: sample(model=None), TypeError, ["takes a model", "got None", "from_linen"]),
  ("model without parameters", lambda h: sample(model=h.abstract), TypeError, ["no parameters yet", "make_denoiser a key"]),
  ("model answers with one array", lambda h: sample(model=lambda x, t: x), TypeError, ["Prediction(x0, eps)", "from_function"]),
  ("model answers another shape", lambda h: sample(model=lambda x, t: jd.Prediction(x[:, :2], x)), ValueError, ["x0", "(2, 2)", "(2, 3)"]),
  ("tableau: a solver", lambda h: sample(tableau=jd.ddim), TypeError, ["a Tableau", "the function ddim", "dpmpp_2m(process, grid)"]),
  ("tableau: a grid", lambda h: sample(tableau=GRID), TypeError, ["a Tableau", "float64[6]", "dpmpp_2m(process, grid)"]),
  ("tableau: a name", lambda h: sample(tableau="ddim"), TypeError, ["a Tableau", "'ddim'", "dpmpp_2m(process, grid)"]),
  ("process uncalled", lambda h: sample(x=(2, 3), process=jd.edm), TypeError, ["a process", "the function edm", "call it: edm()"]),
  ("process: a name", lambda h: sample(x=(2, 3), process="edm"), TypeError, ["a process", "'edm'", "jaxdiff.edm()"]),
  ("sharding: a mesh", lambda h: sample(sharding=h.mesh), TypeError, ["Sharding", "Mesh", "batch_sharding(mesh)"]),
  ("sharding: a PartitionSpec", lambda h: sample(sharding=jax.sharding.PartitionSpec("data")), TypeError, ["Sharding", "NamedSharding(mesh"]),
  ("length: a float", lambda h: sample(length=2.5), TypeError, ["integer", "2.5"]),
  ("length beyond the table", lambda h: sample(length=9), ValueError, ["1..5", "9"]),
  ("progress: a string", lambda h: sample(progress="yes"), TypeError, ["True or False", "'yes'", "progress=True"]),
  ("collect: every, uncalled", lambda h: sample(collect=sampling.every), TypeError, ["a Collector", "every", "call it"]),
  ("collect: a number", lambda h: sample(collect=1), TypeError, ["a Collector", "got 1", "sampling.every(1)"]),
  ("an option that there is not", lambda h: sample(proces=EDM), TypeError, ["'proces'", "did you mean 'process'?"]),
  ("every(0)", lambda h: sampling.every(0), ValueError, ["k >= 1", "k=0"]),
  ("every(True)", lambda h: sampling.every(True), ValueError, ["integer k >= 1", "k=True"]),
  ("collector changes dtype", lambda h: sample(collect=collector(lambda n, i: jnp.zeros((2, 3), jnp.int32), lambda k, i: k + i.a)), TypeError, ["float32[2, 3]", "int32[2, 3]", ".astype"]),
  ("collector changes shape", lambda h: sample(collect=collector(lambda n, i: jnp.zeros((3,)), lambda k, i: i.a)), TypeError, ["float32[2, 3]", "float32[3]", "alike"]),
  ("collector changes its tree", lambda h: sample(collect=collector(lambda n, i: jnp.zeros((2, 3)), lambda k, i: (i.a,))), TypeError, ["returned", "init made", "alike"]),
  ("advance changes the state", lambda h: jd.run(h.key, lambda k, r, s: (s[:, :2], jd.Prediction(s, s)), jnp.arange(3), h.x, collect=collector(lambda n, i: jnp.zeros(()), lambda k, i: k)), TypeError, ["advance", "float32[2, 2]", "float32[2, 3]"]),
  # labels and guidance
  ("label out of range", lambda h: jd.with_label(h.classes, 7), ValueError, ["7", "0..2", "3 for no class"]),
  ("label negative", lambda h: jd.with_label(h.classes, np.array([0, -1])), ValueError, ["-1", "0..2"]),
  ("label of floats", lambda h: jd.with_label(h.classes, h.halves), TypeError, ["float32", "0..3", ".astype(np.int32)"]),
  ("label: None", lambda h: jd.with_label(h.classes, None), TypeError, ["got None", "null label"]),
  ("label: a string", lambda h: jd.with_label(h.classes, "cat"), TypeError, ["a class, an integer", "'cat'"]),
  ("label: booleans", lambda h: jd.with_label(h.classes, True), TypeError, ["a class, an integer", "True"]),
  ("label of a function", lambda h: jd.with_label(toy, 1), TypeError, ["a model that holds a label", "the function toy", "functools.partial"]),
  ("labels of another batch", lambda h: sample(model=jd.with_label(h.classes, h.three)), ValueError, ["3 samples", "the batch has 2"]),
  ("exact: label out of range", lambda h: jd.exact(h.mixture, EDM, label=9), ValueError, ["9", "0..2"]),
  ("exact: arguments swapped", lambda h: jd.exact(EDM, h.mixture), TypeError, ["a process", "swapped with distribution"]),
  ("exact: uncalled process", lambda h: jd.exact(h.mixture, jd.ve), TypeError, ["a process", "call it: ve()"]),
  ("cfg: label out of range", lambda h: jd.cfg(h.exact, label=5, null=3, scale=2.0), ValueError, ["label", "5", "0..2"]),
  ("cfg: a list of labels out of range", lambda h: jd.cfg(h.exact, label=[0, 5], null=3, scale=2.0), ValueError, ["label", "5", "0..2"]),
  ("labels of another batch, exact", lambda h: sample(model=jd.exact(h.mixture, EDM, label=[0, 1, 2])), ValueError, ["labels of shape (3,)", "the batch has 2"]),
  ("cfg: null that does not exist", lambda h: jd.cfg(h.classes, label=1, null=9, scale=2.0), ValueError, ["null", "9", "3 for no class"]),
  ("cfg: negative null", lambda h: jd.cfg(h.exact, label=1, null=-1, scale=2.0), ValueError, ["null", "-1", "0..2"]),
  ("cfg: scale NaN", lambda h: jd.cfg(h.exact, label=1, null=3, scale=math.nan), ValueError, ["scale", "nan", "1.0"]),
  ("cfg: scale infinite", lambda h: jd.cfg(h.exact, label=1, null=3, scale=h.nan), ValueError, ["scale", "finite"]),
  ("cfg: scale a string", lambda h: jd.cfg(h.exact, label=1, null=3, scale="2"), TypeError, ["scale", "'2'"]),
  ("cfg: scale None", lambda h: jd.cfg(h.exact, label=1, null=3, scale=None), TypeError, ["scale", "None"]),
  ("cfg: no null", lambda h: jd.cfg(h.exact, label=1, scale=2.0), TypeError, ["needs null"]),
  ("cfg: a misspelt option", lambda h: jd.cfg(h.exact, labels=1, null=3, scale=2.0), TypeError, ["'labels'", "did you mean 'label'?"]),
  ("cfg: no model", lambda h: jd.cfg(h.params, label=1, null=3, scale=2.0), TypeError, ["takes a model", "got dict"]),
  ("guided: scale NaN", lambda h: jd.guidance.guided(h.exact, null=3, scale=math.nan), ValueError, ["scale", "nan"]),
  ("guided: null that does not exist", lambda h: jd.guidance.guided(h.exact, null=4, scale=2.0), ValueError, ["null", "4"]),
  ("classifier: no function", lambda h: jd.guidance.classifier_guided(toy, 0.5, EDM), TypeError, ["log p(y | x)", "float"]),
  ("classifier: scale NaN", lambda h: jd.guidance.classifier_guided(toy, toy, EDM, scale=math.nan), ValueError, ["scale", "nan"]),
  # networks and parameters
  ("params and module swapped", lambda h: jd.from_linen(h.params, Dense(), EDM), TypeError, ["takes params second", "Dense", "module.init"]),
  ("params of another width", lambda h: sample(model=jd.from_linen(Dense(), h.other, EDM)), ValueError, ["bias", "(4,)", "(3,)", "the network"]),
  ("params without a leaf", lambda h: sample(model=jd.from_linen(Dense(), {"Dense_0": {"kernel": h.params["Dense_0"]["kernel"]}}, EDM)), ValueError, ["bias", "lacks"]),
  ("params: None", lambda h: jd.from_linen(Dense(), None, EDM), TypeError, ["params", "None", "init"]),
  ("module: a class", lambda h: jd.from_linen(Dense, h.params, EDM), TypeError, ["a Linen module", "Dense", "make it first"]),
  ("from_function: no function", lambda h: jd.from_function(h.params, toy, EDM), TypeError, ["apply", "dict"]),
  ("process uncalled in from_linen", lambda h: jd.from_linen(Dense(), h.params, jd.edm), TypeError, ["a process", "call it: edm()"]),
  ("prediction misspelt", lambda h: jd.from_linen(Dense(), h.params, EDM, prediction="epsilon"), ValueError, ["prediction", "'epsilon'", "'eps'"]),
  ("time misspelt", lambda h: jd.from_linen(Dense(), h.params, EDM, time="logsnr"), ValueError, ["time", "'logsnr'", "did you mean 'log_snr'?"]),
  ("an option of no denoiser", lambda h: jd.from_linen(Dense(), h.params, EDM, sigma=0.5), TypeError, ["'sigma'", "sigma_data"]),
  ("sigma_data 0", lambda h: jd.from_linen(Dense(), h.params, EDM, sigma_data=0.0), ValueError, ["sigma_data", "more than 0"]),
  ("sigma_data NaN", lambda h: jd.from_linen(Dense(), h.params, EDM, sigma_data=math.nan), ValueError, ["sigma_data", "nan"]),
  ("sigma_data: a string", lambda h: jd.from_linen(Dense(), h.params, EDM, sigma_data="0.5"), TypeError, ["sigma_data", "'0.5'", "0.5, without quotes"]),
  ("network misspelt", lambda h: networks.make("unett"), ValueError, ["'unett'", "did you mean 'unet'?"]),
  ("network: an option that it lacks", lambda h: networks.make("mlp", width=3), TypeError, ["'width'", "features"]),
  # grids
  ("grid: no process", lambda h: jd.grids.karras(10, EDM), TypeError, ["karras(process, n)", "swapped with n"]),
  ("grid: steps as a float", lambda h: jd.grids.karras(EDM, 10.0), TypeError, ["an integer", "10.0", "n=10"]),
  ("grid: steps as text", lambda h: jd.grids.log_snr(EDM, "10"), TypeError, ["an integer", "'10'", "n=10, without quotes"]),
  ("grid: no steps", lambda h: jd.grids.uniform(EDM, 0), ValueError, ["n >= 1", "n=0"]),
  ("grid: True steps", lambda h: jd.grids.uniform(EDM, True), TypeError, ["an integer", "True"]),
  ("grid: rho NaN", lambda h: jd.grids.karras(EDM, 5, rho=math.nan), ValueError, ["rho", "nan"]),
  ("grid: start NaN", lambda h: jd.grids.karras(EDM, 5, start=math.nan), ValueError, ["start", "nan"]),
  ("grid: to_zero as text", lambda h: jd.grids.karras(EDM, 5, to_zero="yes"), TypeError, ["True or False", "'yes'", "to_zero=True"]),
  ("grid: misspelt option", lambda h: jd.grids.karras(EDM, 5, rh=7.0), TypeError, ["'rh'", "did you mean 'rho'?"]),
  ("grid: num_steps", lambda h: jd.grids.karras(EDM, num_steps=5), TypeError, ["'num_steps'", "takes"]),
  ("grid: uncalled process", lambda h: jd.grids.karras(jd.ve, 5), TypeError, ["a process", "call it: ve()"]),
  ("grid: table misspelt", lambda h: jd.grids.align_your_steps(EDM, table="sd1.5"), ValueError, ["table", "'sd15'"]),
  ("levels that rise", lambda h: jd.grids.from_noise_levels(EDM, [1.0, 2.0]), ValueError, ["strictly decreasing", "grid[::-1]"]),
  ("levels: text", lambda h: jd.grids.from_noise_levels(EDM, "karras"), TypeError, ["noise levels", "'karras'"]),
  # solvers
  ("solver: grid is a number", lambda h: jd.heun(EDM, 10), ValueError, ["1-D", "grids.karras(process, 10)"]),
  ("solver: grid is None", lambda h: jd.heun(EDM, None), ValueError, ["1-D", "n + 1 times"]),
  ("solver: grid is a name", lambda h: jd.heun(EDM, "karras"), TypeError, ["a 1-D array of times", "'karras'", "grids.karras"]),
  ("solver: grid of text", lambda h: jd.heun(EDM, ["a", "b"]), TypeError, ["a 1-D array of times", "grids.karras"]),
  ("solver: grid that rises", lambda h: jd.heun(EDM, [0.1, 1.0]), ValueError, ["strictly decreasing", "grid[::-1]"]),
  ("solver: swapped", lambda h: jd.heun(GRID, EDM), TypeError, ["a process", "swapped with grid"]),
  ("solver: no grid", lambda h: jd.heun(EDM), TypeError, ["heun(process, grid)", "needs grid"]),
  ("solver: one argument more", lambda h: jd.ddim(EDM, GRID, 0.5), TypeError, ["by position", "eta"]),
  ("order: text", lambda h: jd.deis(EDM, GRID, order="2"), TypeError, ["an integer", "'2'", "order=2, without quotes"]),
  ("order: a float", lambda h: jd.unipc(EDM, GRID, order=2.0), TypeError, ["an integer", "2.0", "order=2"]),
  ("order: True", lambda h: jd.ipndm(EDM, GRID, order=True), TypeError, ["an integer", "True", "order=1"]),
  ("order too high", lambda h: solve("lms", order=5), ValueError, ["lms", "1..4", "5"]),
  ("order above the steps", lambda h: jd.solvers.lms(EDM, GRID[:3], order=3), ValueError, ["lms of order 3", "has 2", "lower the order"]),
  ("order: 0", lambda h: solve("adams_bashforth", order=0), ValueError, ["adams_bashforth", "1..16", "0"]),
  ("orders of text", lambda h: solve("dpm_solver", order=["1"] * 5), TypeError, ["integers", "order"]),
  ("eta NaN", lambda h: jd.ddim(EDM, GRID, eta=math.nan), ValueError, ["eta of ddim", "finite", "nan"]),
  ("eta None", lambda h: jd.ddim(EDM, GRID, eta=None), TypeError, ["a number", "None", "leave it out for 0.0"]),
  ("eta an array", lambda h: jd.ddim(EDM, GRID, eta=np.ones(5)), TypeError, ["a number", "float64[5]", "one number holds for all"]),
  ("eta negative", lambda h: jd.ddim(EDM, GRID, eta=-1.0), ValueError, ["eta", "-1"]),
  ("eta True", lambda h: solve("dpmpp_2m_sde", eta=True), TypeError, ["a number", "True"]),
  ("churn infinite", lambda h: jd.heun_churn(EDM, GRID, churn=math.inf), ValueError, ["churn", "inf"]),
  ("s_noise negative", lambda h: jd.heun_churn(EDM, GRID, s_noise=-1.0), ValueError, ["s_noise", "at least 0", "-1"]),
  ("corrector as text", lambda h: jd.unipc(EDM, GRID, corrector="false"), TypeError, ["True or False", "'false'", "corrector=False"]),
  ("variant misspelt", lambda h: jd.unipc(EDM, GRID, variant="bh3"), ValueError, ["variant", "'bh3'", "'bh2'"]),
  ("variant a number", lambda h: jd.deis(EDM, GRID, variant=2), TypeError, ["a string", "2", "'t_ab'"]),
  ("option misspelt", lambda h: jd.deis(EDM, GRID, orders=2), TypeError, ["deis", "'orders'", "did you mean 'order'?"]),
  ("option of another solver", lambda h: jd.heun(EDM, GRID, order=2), TypeError, ["heun", "'order'", "no options"]),
  ("solver: uncalled process", lambda h: jd.euler(jd.vp_linear, GRID), TypeError, ["a process", "call it: vp_linear()"]),
  ("er_sde: phi unknown", lambda h: solve("er_sde", phi="sdee"), ValueError, ["phi", "'sdee'", "did you mean"]),
  ("sa_solver: tau text", lambda h: solve("sa_solver", tau="1"), TypeError, ["tau", "'1'"]),
  ("restart: no solver", lambda h: solve("restart", solver="heun"), TypeError, ["a function", "'heun'", "itself, not its name"]),
  ("unic: no solver", lambda h: solve("unic", predictor=toy), TypeError, ["@solver", "the function toy"]),
  ("unic: an option of the predictor", lambda h: solve("unic", predictor=jd.deis, ordr=2), TypeError, ["deis", "'ordr'", "did you mean 'order'?"]),
  ("encoder: a table", lambda h: jd.encoder(TABLE, EDM, GRID), TypeError, ["a function", "Tableau"]),
  ("encoder: misspelt option", lambda h: jd.encoder(jd.deis, EDM, GRID, ordr=2), TypeError, ["deis", "did you mean 'order'?"]),
  ("default: no calls", lambda h: jd.default(EDM, 0), ValueError, ["calls", "at least"]),
  ("default: calls as a grid", lambda h: jd.default(EDM, GRID), TypeError, ["an integer", "float64[6]"]),
  ("default: width 0", lambda h: jd.default(EDM, 8, width=0.0), ValueError, ["width", "more than 0", "0.0"]),
  ("default: calls text", lambda h: jd.default(EDM, "8"), TypeError, ["an integer", "'8'", "calls=8"]),
  ("solver: decorates no function", lambda h: jd.solver(3), TypeError, ["a function", "got 3"]),
  ("langevin table: NaN", lambda h: jd.solvers.langevin(EDM, 1.0, math.nan), ValueError, ["step", "at least 0"]),
  ("inject_noise: no table", lambda h: jd.solvers.inject_noise(jd.ddim, EDM, 0.1), TypeError, ["a Tableau", "the function ddim"]),
  ("budget of no calls", lambda h: jd.solvers.orders_for_budget(0), ValueError, ["at least one call", "0"]),
  # tables
  ("repeat: 0 times", lambda h: jd.tableau.repeat(TABLE, 0), ValueError, ["at least 1", "0"]),
  ("pad: shorter", lambda h: jd.tableau.pad(TABLE, 2), ValueError, ["5 rows", "use take"]),
  ("stack: one table", lambda h: jd.tableau.stack(TABLE), TypeError, ["a sequence of tables", "[table]"]),
  ("concat: a solver", lambda h: jd.tableau.concat(TABLE, jd.ddim), TypeError, ["tables", "the function ddim"]),
  ("save: a solver", lambda h: jd.tableau.save("x.npz", jd.ddim), TypeError, ["a Tableau", "the function ddim"]),
  # processes
  ("edm: sigma_min above sigma_max", lambda h: jd.edm(80.0, 0.002), ValueError, ["t_min < t_max", "80"]),
  ("edm: sigma_min 0", lambda h: jd.edm(0.0), ValueError, ["positive", "Raise t_min"]),
  ("edm: text", lambda h: jd.edm("0.002"), TypeError, ["a number", "'0.002'", "0.002, without quotes"]),
  ("edm: NaN", lambda h: jd.edm(sigma_max=math.nan), ValueError, ["sigma_max", "nan"]),
  ("ve: negative sigma_min", lambda h: jd.ve(-1.0), ValueError, ["sigma_min", "more than 0", "-1"]),
  ("vp_linear: misspelt", lambda h: jd.vp_linear(beta_mim=0.1), TypeError, ["'beta_mim'", "did you mean 'beta_min'?"]),
  ("vp_linear: betas equal", lambda h: jd.vp_linear(-1.0, 0.5), ValueError, ["sigma(t_min)", "Raise t_min"]),
  ("vp_discrete: a number", lambda h: processes.vp_discrete(1000), ValueError, ["betas", "two steps"]),
  ("vp_discrete: betas above 1", lambda h: processes.vp_discrete([0.1, 1.5]), ValueError, ["(0, 1)", "1.5", "0.999"]),
  ("pfgmpp: 0 dimensions", lambda h: jd.pfgmpp(0), ValueError, ["aug_dim", "0"]),
  ("from_alpha_sigma: numbers", lambda h: jd.from_alpha_sigma(1.0, lambda t: t, 0.1, 1.0), TypeError, ["a function", "1.0"]),
  ("interpolant: path misspelt", lambda h: interpolants.interpolant("linaer"), ValueError, ["path", "did you mean 'linear'?"]),
  ("GaussianProcess: no schedule", lambda h: jd.GaussianProcess("edm", 0.1, 1.0), TypeError, ["schedule", "'edm'", "jaxdiff.edm()"]),
  ("GaussianProcess: text times", lambda h: dataclasses.replace(EDM, t_min="0.1"), TypeError, ["t_min", "'0.1'"]),
  # samplers
  ("adaptive: rtol 0", lambda h: samplers.adaptive(h.key, toy, None, h.x, process=EDM, rtol=0.0, atol=0.0), ValueError, ["rtol", "0"]),
  ("adaptive: rtol NaN", lambda h: samplers.adaptive(h.key, toy, None, h.x, process=EDM, rtol=math.nan), ValueError, ["rtol", "nan"]),
  ("adaptive: method misspelt", lambda h: samplers.adaptive(h.key, toy, None, h.x, process=EDM, method="dormand-prince"), ValueError, ["method", "did you mean 'dormand_prince'?"]),
  ("adaptive: max_calls 0", lambda h: samplers.adaptive(h.key, toy, None, h.x, process=EDM, max_calls=0), ValueError, ["max_calls", "0"]),
  ("adaptive: a process for the model", lambda h: samplers.adaptive(h.key, EDM, None, h.x, process=toy), TypeError, ["a model second", "key, model, span, x"]),
  ("picard: window 0", lambda h: samplers.picard(h.key, toy, TABLE, h.x, process=EDM, window=0), ValueError, ["window", "0"]),
  ("langevin: step NaN", lambda h: samplers.langevin(h.key, lambda x: -x, 2, h.x, step=math.nan), ValueError, ["step", "nan"]),
  ("langevin: score and x swapped", lambda h: samplers.langevin(h.key, h.x, 2, lambda x: -x, step=0.1), TypeError, ["a score second", "float32[2, 3]", "key, score, steps, x"]),
  ("corrector: snr NaN", lambda h: samplers.predictor_corrector(h.key, toy, TABLE, h.x, process=EDM, snr=math.nan), ValueError, ["snr", "nan"]),
  ("corrector: steps as a float", lambda h: samplers.predictor_corrector(h.key, toy, TABLE, h.x, process=EDM, corrector_steps=1.0), TypeError, ["an integer", "1.0"]),
  # samplers in another order than all others
  ("order: adaptive", lambda h: samplers.adaptive(toy, EDM, h.x), TypeError, ["a PRNG key first, got the function toy", "key, model, span, x, all else by name"]),
  ("order: addim", lambda h: samplers.addim(toy, EDM, GRID, h.x), TypeError, ["a PRNG key first", "key, model, grid, x"]),
  ("order: langevin", lambda h: samplers.langevin(h.key, lambda x: -x, h.x, 0.1, 2), TypeError, ["4 arguments by position, got 5", "key, score, steps, x, all else by name: step"]),
  ("order: langevin, partly named", lambda h: samplers.langevin(h.key, lambda x: -x, h.x, step=0.1, steps=2), TypeError, ["steps third", "float32[2, 3]", "key, score, steps, x"]),
  ("order: vanilla_sample", lambda h: samplers.vanilla_sample(h.key, lambda x: -x, h.x, 2, step=0.1), TypeError, ["time third", "float32[2, 3]", "key, score, time, data"]),
  ("order: dmcmc", lambda h: samplers.dmcmc(h.key, toy, toy, TABLE, h.x, process=EDM, levels=GRID), TypeError, ["got 5", "key, model, finish, chain", "posterior"]),
  ("order: teleport_sample", lambda h: samplers.teleport_sample(h.key, toy, h.x, TABLE, h.x, process=EDM), TypeError, ["got 5", "key, model, tableau, x", "stats"]),
  ("order: phase_space.sample", lambda h: phase_space.sample(h.key, toy, EDM, GRID, h.x), TypeError, ["got 5", "key, model, grid, start", "process"]),
  ("order: x and the grid", lambda h: samplers.addim(h.key, toy, EDM, GRID, process=EDM), TypeError, ["grid third, got GaussianProcess", "key, model, grid, x"]),
  ("order: x and the table", lambda h: samplers.picard(h.key, toy, h.x, TABLE, process=EDM), TypeError, ["x fourth, got Tableau", "key, model, tableau, x"]),
  ("order: model and key", lambda h: samplers.picard(toy, h.key, TABLE, h.x, process=EDM), TypeError, ["a PRNG key first, got the function toy"]),
  ("adaptive: a shape without a key", lambda h: samplers.adaptive(None, toy, None, (2, 3), process=EDM), TypeError, ["(2, 3)", "PRNG key"]),
  ("ladder: levels 0", lambda h: samplers.ladder(levels=0), ValueError, ["levels", "0"]),
  ("addim: strength NaN", lambda h: samplers.addim(h.key, toy, GRID, h.x, process=EDM, strength=math.nan), ValueError, ["strength", "nan"]),
  ("vanilla: no samples", lambda h: samplers.data_init(h.key, h.x, 0), ValueError, ["n", "0"]),
  ("likelihood: trace misspelt", lambda h: likelihood.log_likelihood(h.key, toy, EDM, h.x, trace="exakt"), ValueError, ["trace", "did you mean 'exact'?"]),
  ("likelihood: integers", lambda h: likelihood.log_likelihood(h.key, toy, EDM, h.ints), TypeError, ["int32", "dequantize"]),
  ("likelihood: a grid of steps", lambda h: likelihood.log_likelihood(h.key, toy, EDM, h.x, solver=jd.heun, grid=10), ValueError, ["1-D", "grids.karras(process, 10)"]),
  ("likelihood: data_std negative", lambda h: likelihood.log_likelihood(h.key, toy, EDM, h.x, data_std=-1.0), ValueError, ["data_std", "at least 0"]),
  ("bits_per_dim: no dimensions", lambda h: likelihood.bits_per_dim(1.0, 0), ValueError, ["dims", "0"]),
  ("dequantize: floats", lambda h: likelihood.dequantize(h.key, h.x), TypeError, ["integers", "float32"]),
  ("dequantize: levels 0", lambda h: likelihood.dequantize(h.key, h.ints, levels=0), ValueError, ["levels", "0"]),
  # training and distillation
  ("update: accumulate 0", lambda h: training.make_update(toy, SGD, accumulate=0), ValueError, ["accumulate", "at least 1", "0"]),
  ("update: accumulate a float", lambda h: training.make_update(toy, SGD, accumulate=2.0), TypeError, ["an integer", "2.0", "accumulate=2"]),
  ("update: ema 1", lambda h: training.make_update(toy, SGD, ema=1.0), ValueError, ["ema", "[0, 1)", "1.0"]),
  ("update: ema NaN", lambda h: training.make_update(toy, SGD, ema=math.nan), ValueError, ["ema", "nan"]),
  ("update: clip_norm 0", lambda h: training.make_update(toy, SGD, clip_norm=0.0), ValueError, ["clip_norm", "positive", "None"]),
  ("update: a learning rate for an optimizer", lambda h: training.make_update(toy, 1e-3), TypeError, ["an optimizer", "0.001", "optax.adam(1e-3)"]),
  ("update: optimizer uncalled", lambda h: training.make_update(toy, optax.adam), TypeError, ["an optimizer", "call it: adam()"]),
  ("update: loss and optimizer swapped", lambda h: training.make_update(SGD, toy), TypeError, ["a function", "loss", "swapped with optimizer"]),
  ("init_state: params and optimizer swapped", lambda h: training.init_state(h.key, SGD, h.params), TypeError, ["an optimizer", "swapped with params"]),
  ("init_state: averages negative", lambda h: training.init_state(h.key, h.params, SGD, averages=-1), ValueError, ["averages", "at least 0"]),
  ("train: log_every 0", lambda h: training.train(h.state, h.update, iter([]), steps=1, log_every=0), ValueError, ["log_every", "at least 1", "0"]),
  ("train: every 0", lambda h: training.train(h.state, h.update, iter([]), steps=1, every=0), ValueError, ["every", "at least 1", "0"]),
  ("train: snapshot_every 0", lambda h: training.train(h.state, h.update, iter([]), steps=1, snapshot_every=0), ValueError, ["snapshot_every", "at least 1"]),
  ("train: steps text", lambda h: training.train(h.state, h.update, iter([]), steps="10"), TypeError, ["an integer", "'10'", "steps=10"]),
  ("train: a state of nothing", lambda h: training.train(h.params, h.update, iter([]), steps=1), TypeError, ["a TrainState", "init_state"]),
  ("train: batches without a position", lambda h: training.train(h.state, h.update, [1, 2], steps=1), TypeError, ["iterator", "list", "data.batches"]),
  ("trace: first below 1", lambda h: training.Trace("x", 0, 3), ValueError, ["first", "at least 1"]),
  ("trace: last before first", lambda h: training.Trace("x", 5, 3), ValueError, ["first", "last", "5", "3"]),
  ("guard: factor 1", lambda h: training.Guard(factor=1.0), ValueError, ["factor", "> 1"]),
  ("exponential: decay negative", lambda h: training.ema.exponential(-0.1), ValueError, ["[0, 1)", "-0.1"]),
  ("config: shape a number", lambda h: models.ModelConfig(8), TypeError, ["shape", "got 8", "(8,)"]),
  ("config: shape with 0", lambda h: models.ModelConfig((0, 8)), TypeError, ["shape", "at least 1", "(0, 8)"]),
  ("config: sigma_data 0", lambda h: models.ModelConfig((3,), sigma_data=0.0), ValueError, ["sigma_data", "more than 0"]),
  ("config: num_classes negative", lambda h: models.ModelConfig((3,), num_classes=-1), ValueError, ["num_classes", "at least 0"]),
  ("config: process misspelt", lambda h: models.make_denoiser(models.ModelConfig((3,), process="emd")), ValueError, ["'emd'", "did you mean 'edm'?"]),
  ("config: an option of no network", lambda h: models.make_denoiser(models.ModelConfig((3,), "mlp", dict(featurs=(4,)))), ValueError, ["featurs", "did you mean 'features'?"]),
  ("config: an option of no process", lambda h: models.make_denoiser(models.ModelConfig((3,), "mlp", process_options=dict(sigma=1.0))), ValueError, ["sigma", "sigma_max"]),
  ("config: a dict", lambda h: models.make_denoiser(dict(shape=(3,))), TypeError, ["a ModelConfig", "dict", "ModelConfig(shape"]),
  ("digits: steps 0", lambda h: zoo.digits_denoiser(steps=0), ValueError, ["steps", "at least 1"]),
  ("digits: learning rate NaN", lambda h: zoo.digits_denoiser(learning_rate=math.nan), ValueError, ["learning_rate", "nan"]),
  ("digits: learning rate 0", lambda h: zoo.digits_denoiser(learning_rate=0.0), ValueError, ["learning_rate", "more than 0"]),
  ("likelihood training: steps 0", lambda h: densities.maximum_likelihood(h.key, toy, h.params, h.x, steps=0), ValueError, ["steps", "at least 1"]),
  ("denoising: weighting misspelt", lambda h: losses.denoising(h.denoiser, weighting="edn"), ValueError, ["weighting", "did you mean 'edm'?"]),
  ("denoising: dropout above 1", lambda h: losses.denoising(h.denoiser, num_classes=3, label_dropout=1.5), ValueError, ["label_dropout", "1.5"]),
  ("denoising: buckets 0", lambda h: losses.denoising(h.denoiser, learned_weighting=True, buckets=0), ValueError, ["buckets", "at least 1"]),
  ("distil: no optimizer", lambda h: edm_method(distillation.reflow, steps=0), ValueError, ["steps", "0"]),
  ("distil: a learning rate", lambda h: distillation.reflow(h.classes, h.classes, optimizer=1e-3), TypeError, ["an optimizer", "0.001", "optax.adam(1e-3)"]),
  ("distil: huber NaN", lambda h: edm_method(distillation.consistency_distillation, huber=math.nan), ValueError, ["huber", "nan"]),
  ("distil: fake_steps 0", lambda h: edm_method(distillation.dmd, fake_steps=0), ValueError, ["fake_steps", "0"]),
  ("distil: guided by NaN", lambda h: distillation.guided(h.classes, math.nan), ValueError, ["scale", "nan"]),
  ("distil: misspelt option", lambda h: distillation.ict(h.classes, optimizer=SGD, update=3), TypeError, ["'update'", "did you mean 'updates'?"]),
  ("distil: updates 0", lambda h: edm_method(distillation.progressive, updates=0), ValueError, ["updates", "0"]),
  ("learn: rounds 0", lambda h: learning.Settings(rounds=0), ValueError, ["rounds", "at least 1"]),
  ("learn: rate NaN", lambda h: learning.Settings(rate=math.nan), ValueError, ["rate", "nan"]),
  ("learn: calls 0", lambda h: learning.teacher(EDM, 0), ValueError, ["calls", "0"]),
  ("learn: shape a number", lambda h: learning.teach(h.key, toy, EDM, 4, TABLE), TypeError, ["shape", "got 4"]),
  ("quantize: 0 bits", lambda h: quantization.Config(w_bits=0), ValueError, ["2 to 16 bits", "got 0", "leave the layer"]),
  ("quantize: text", lambda h: quantization.Config(w_bits="8"), TypeError, ["w_bits", "'8'"]),
  # metrics and data
  ("kid: subsets 0", lambda h: metrics.kid(np.ones((9, 2)), np.ones((9, 2)), subsets=0), ValueError, ["subsets", "at least 1"]),
  ("precision: k 0", lambda h: metrics.precision_recall(np.ones((9, 2)), np.ones((9, 2)), k=0), ValueError, ["k", "0"]),
  ("precision: k a float", lambda h: metrics.precision_recall(np.ones((9, 2)), np.ones((9, 2)), k=3.0), TypeError, ["an integer", "3.0"]),
  ("frechet: other dimensions", lambda h: metrics.frechet_of_samples(np.ones((9, 2)), np.ones((9, 3))), ValueError, ["2", "3"]),
  ("frechet: no samples", lambda h: metrics.frechet_of_samples(np.ones((0, 2)), np.ones((9, 2))), ValueError, ["expected 2 samples", "got 0"]),
  ("bootstrap: no replicas", lambda h: metrics.bootstrap(len, 5, replicas=0), ValueError, ["replicas", "at least 1"]),
  ("inception score: splits 0", lambda h: metrics.inception_score_splits(np.full((4, 2), 0.5), splits=0), ValueError, ["splits", "0"]),
  ("rbf: bandwidth 0", lambda h: metrics.rbf(0.0), ValueError, ["bandwidth", "0"]),
  ("sliced: directions 0", lambda h: metrics.sliced_wasserstein(h.key, h.x, h.x, 0), ValueError, ["directions", "0"]),
  ("batches: batch_size 0", lambda h: data.batches(np.ones((9, 2)), 0, seed=0), ValueError, ["batch_size", "0"]),
  ("batches: batch_size text", lambda h: data.batches(np.ones((9, 2)), "4", seed=0), TypeError, ["an integer", "'4'", "batch_size=4"]),
  ("batches: more than there is", lambda h: data.batches(np.ones((9, 2)), 10, seed=0), ValueError, ["9 examples", "10", "Lower batch_size"]),
  ("batches: a number for data", lambda h: data.batches(5, 2, seed=0), TypeError, ["source", "5"]),
  ("batches: seed None", lambda h: data.batches(np.ones((9, 2)), 2, seed=None), TypeError, ["an integer", "None"]),
  ("data: name misspelt", lambda h: data.load("cifar"), ValueError, ["'cifar'", "cifar10"]),
  ("data: an option that it lacks", lambda h: data.load("digits", split="train"), TypeError, ["'split'"]),
  ("to_device: a mesh", lambda h: data.to_device(iter([]), h.mesh), TypeError, ["Sharding", "Mesh", "batch_sharding(mesh)"]),
  ("downsample: factor 0", lambda h: data.downsample(h.x, 0), ValueError, ["factor", "0"]),
  ("mesh: more devices than there are", lambda h: parallel.data_mesh(99), ValueError, ["99", "XLA_FLAGS"]),
  ("batch_sharding: devices", lambda h: parallel.batch_sharding(jax.devices()), TypeError, ["a Mesh", "data_mesh()"]),
  ("fully_sharded: a sharding", lambda h: parallel.fully_sharded(h.params, "data"), TypeError, ["a Mesh", "'data'"]),
  ("mixture: weights negative", lambda h: jd.oracles.mixture(np.eye(3), np.ones(3), [1.0, -1.0, 1.0]), ValueError, ["weights", "-1"]),
  ("mixture: means NaN", lambda h: jd.oracles.mixture(np.eye(3) * np.nan, np.ones(3)), ValueError, ["means", "NaN"]),
  ("zoo: name misspelt", lambda h: zoo.load("digit"), FileNotFoundError, ["'digit'", "digits"]),
]  # fmt: skip

FILES = [
  ("npz: not there", lambda f: data.from_npz(f / "none.npz"), FileNotFoundError, ["none.npz", "np.savez"]),
  ("npz: empty", lambda f: data.from_npz(f / "empty.npz"), ValueError, ["empty.npz", "cut short", "np.savez"]),
  ("npz: text", lambda f: data.from_npz(f / "text.npz"), ValueError, ["text.npz", "not an .npz archive"]),
  ("npz: a folder", lambda f: data.from_npz(f / "folder.npz"), IsADirectoryError, ["is a folder", "name the file"]),
  ("npz: a link to itself", lambda f: data.from_npz(f / "loop.npz"), FileNotFoundError, ["loop.npz", "back to itself"]),
  ("npz: pickled objects", lambda f: data.from_npz(f / "objects.npz"), ValueError, ["pickled Python objects", "plain arrays"]),
  ("npz: a bad checksum", lambda f: data.from_npz(f / "damaged.npz"), ValueError, ["damaged", "CRC", "copy it again"]),
  ("npz: a single array", lambda f: data.from_npz(f / "single.npy"), ValueError, ["single.npy", "not an .npz archive"]),
  ("npz: a number", lambda f: data.from_npz(3), TypeError, ["a path", "got 3"]),
  ("table: a bad checksum", lambda f: jd.tableau.load(f / "damaged.npz"), ValueError, ["damaged", "tableau.save"]),
  ("table: pickled objects", lambda f: jd.tableau.load(f / "objects.npz"), ValueError, ["pickled", "tableau.save"]),
  ("table: other arrays", lambda f: jd.tableau.load(f / "image.npz"), ValueError, ["image", "tableau.save"]),
  ("table: a folder", lambda f: jd.tableau.load(f / "nothing"), IsADirectoryError, ["is a folder", "tableau.save"]),
  ("table: not there", lambda f: jd.tableau.load(f / "none.npz"), FileNotFoundError, ["none.npz", "tableau.save"]),
  ("zoo: a bad checksum", lambda f: zoo.load(f / "damaged.npz"), ValueError, ["damaged", "zoo.write"]),
  ("zoo: other arrays", lambda f: zoo.load(f / "image.npz"), ValueError, ["image.npz", "zoo.write"]),
  ("statistics: pickled objects", lambda f: metrics.statistics.load(f / "objects.npz"), ValueError, ["pickled", "metrics.statistics.save"]),
  ("v3 statistics: other arrays", lambda f: jd.solvers.v3_statistics.load(f / "image.npz"), ValueError, ["model statistics", "v3_statistics.save"]),
  ("shards: a file", lambda f: data.from_shards(f / "text.npz"), (FileNotFoundError, ValueError), ["text.npz"]),
  ("pictures: a folder that holds itself", lambda f: data.from_folder(f / "pictures"), ValueError, ["again", "lies in", "Remove the link"]),
  ("pictures: none", lambda f: data.from_folder(f / "nothing"), ValueError, ["no pictures", ".png"]),
  ("pictures: a file", lambda f: data.from_folder(f / "text.npz"), FileNotFoundError, ["text.npz", "folder"]),
  ("pictures: other files", lambda f: data.from_folder(f / "notes"), ValueError, ["notes.txt", "skip_bad=True"]),
  ("pictures: size text", lambda f: data.from_folder(f / "notes", size="32"), TypeError, ["an integer", "'32'", "size=32"]),
  ("checkpoints: no folder", lambda f: training.load_denoiser(f / "none"), FileNotFoundError, ["none"]),
  ("checkpoints: a file", lambda f: training.load_denoiser(f / "text.npz"), (FileNotFoundError, NotADirectoryError), ["text.npz"]),
  ("checkpoints: config cut short", lambda f: training.load_denoiser(f / "run"), ValueError, ["config.json"]),
  ("checkpoints: keep 0", lambda f: checkpoints.open(f / "new", keep=0), ValueError, ["keep", "at least 1"]),
  ("checkpoints: a number", lambda f: checkpoints.open(3), TypeError, ["a path", "got 3"]),
  ("weights: not there", lambda f: jd.weights.ddpm_mnist.load(f / "none.npz"), FileNotFoundError, ["none.npz"]),
]  # fmt: skip


@pytest.fixture
def unfiltered():
  """Tracebacks with the frames of JAX, which are hidden otherwise."""
  before = jax.config.jax_traceback_filtering
  jax.config.update("jax_traceback_filtering", "off")
  yield
  jax.config.update("jax_traceback_filtering", before)


def refuse(call, given, kind, fragments, compiled):
  before = len(compiled)
  with pytest.raises(kind) as refusal:
    call(given)
  frame = traceback.extract_tb(refusal.value.__traceback__)[-1]
  where = pathlib.Path(frame.filename)
  assert where.is_relative_to(HOME), f"raised in {where}: {refusal.value}"
  missing = [part for part in fragments if part not in str(refusal.value)]
  assert not missing, f"{missing} not in: {refusal.value}"
  assert compiled[before:] == []


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize(
  ("call", "kind", "fragments"),
  [pytest.param(*row[1:], id=row[0]) for row in DOORS],
)
def test_a_mistake_is_refused_with_the_mend(call, kind, fragments, compiled):
  refuse(call, held(), kind, fragments, compiled)


@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize(
  ("call", "kind", "fragments"),
  [pytest.param(*row[1:], id=row[0]) for row in FILES],
)
def test_a_bad_file_is_refused_with_the_mend(
  call, kind, fragments, files, compiled
):
  refuse(call, files, kind, fragments, compiled)


def test_the_rows_have_names_of_their_own():
  names = [row[0] for row in DOORS + FILES]
  assert len(set(names)) == len(names) > 120
