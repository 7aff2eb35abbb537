"""A table, a model and a process belong together, or are told apart by name."""

import copy
import dataclasses
import math
import pickle
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import diagnostics
from jaxdiff import distillation
from jaxdiff import guidance
from jaxdiff import learning
from jaxdiff import likelihood
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import quantization
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.diagnostics import fields
from jaxdiff.predictions import Prediction
from jaxdiff.processes import agreement
from jaxdiff.search import fitness
from jaxdiff.search import populations
from jaxdiff.search import usf

KEY = jax.random.key(1)
EDM = processes.edm()
VP = processes.vp_linear()
FLOW = processes.rectified_flow()
GRID = np.asarray([0.9, 0.5, 0.1])  # times of all three


def seen(x, t):
  """A model of no process."""
  del t
  return Prediction(x, jnp.zeros_like(x))


def model_of(process):
  return oracles.exact(oracles.g2(), process)


# --- which processes are one -------------------------------------------------


def with_nan(t_min=0.1):
  return processes.from_alpha_sigma(jnp.cos, jnp.sin, t_min, 1.5)


@pytest.mark.parametrize(
  ("one", "other", "expected"),
  [
    (EDM, processes.edm(), True),
    (EDM, processes.edm(0.1, 20.0), True),
    (EDM, processes.edm(100.0, 200.0), True),
    (EDM, processes.pfgmpp(8.0), True),
    (VP, dataclasses.replace(VP, t_min=1e-5), True),
    (VP, processes.vp_linear(np.float32(0.1), 20.0), True),
    (FLOW, processes.from_alpha_sigma(
      lambda t: 1.0 - t, lambda t: t, 0.01, 1.0), True),
    (VP, processes.sub_vp(), False),
    (VP, processes.vp_linear(0.1, 19.0), False),
    (VP, processes.vp_cosine(), False),
    (VP, FLOW, False),
    (EDM, FLOW, False),
    (EDM, VP, False),
    (EDM, processes.ve(), False),
    (VP, processes.edm(5.0, 80.0), False),
  ],
)  # fmt: skip
def test_processes_are_the_same_by_their_noise_levels(one, other, expected):
  assert agreement.same(one, other) is expected
  assert agreement.same(other, one) is expected


@dataclasses.dataclass(frozen=True)
class Endless:
  """A schedule of one's own that never reaches sigma = 0."""

  floor: float = 0.1
  t_zero: float = math.nan

  def alpha(self, t):
    return 0.0 * t + 1.0

  def sigma(self, t):
    return self.floor + t

  def log_snr(self, t):
    return (
      -np.log(self.sigma(t))
      if isinstance(t, float)
      else -jnp.log(self.sigma(t))
    )


@pytest.mark.parametrize(
  "make",
  [
    with_nan,
    lambda: processes.from_alpha_sigma(
      jnp.cos, jnp.sin, 0.1, 1.5, float("nan")
    ),
    lambda: processes.GaussianProcess(Endless(t_zero=float("nan")), 0.1, 1.0),
    lambda: dataclasses.replace(VP, noise=processes.StudentT(2.0)),
    processes.edm,
  ],
)
def test_equal_processes_are_equal_and_share_a_program(make):
  """Also where a field is NaN, which is unequal to itself."""
  one, other = make(), make()
  assert one is not other
  assert one == other
  assert hash(one) == hash(other)
  assert one.schedule == other.schedule or math.isnan(one.t_zero)
  assert dataclasses.replace(one, t_max=0.9) != one
  assert one != "another thing"

  chex.clear_trace_counter()

  @chex.assert_max_traces(n=1)
  def sigma(t, process):
    return process.sigma(t)

  sigma = jax.jit(sigma, static_argnums=1)
  for process in (one, other, one):
    sigma(jnp.ones(2), process)
  # as a static field of a model, too
  models = [oracles.exact(oracles.Empirical(np.ones((1, 1))), p)
            for p in (one, other)]  # fmt: skip
  structures = [jax.tree.structure(m) for m in models]
  assert structures[0] == structures[1]


# --- what a table remembers --------------------------------------------------

X = jnp.ones((2, 2))
TABLE = solvers.ddim(EDM, GRID)
KEPT = {
  "solver": lambda: TABLE,
  "of both ends": lambda: solvers.dpmpp_2m(FLOW, [1.0, 0.5, 0.2, 0.0]),
  "default": lambda: solvers.default(EDM, 4),
  "pad": lambda: tables.pad(TABLE, 5, 3),
  "stack": lambda: tables.stack([TABLE, solvers.heun(EDM, GRID)])[0],
  "concat": lambda: tables.concat(
    TABLE, tables.row(0.1, "x0", y=(0.0, 0.0, 1.0))
  ),
  "take": lambda: tables.take(TABLE, slice(1, None)),
  "repeat": lambda: tables.repeat(TABLE, 2),
  "reverse": lambda: tables.reverse(TABLE, 0.1),
  "replace": lambda: TABLE._replace(noise=0.5 * TABLE.noise),
  "copy": lambda: copy.copy(TABLE),
  "deepcopy": lambda: copy.deepcopy(TABLE),
  "encoder": lambda: solvers.encoder(solvers.heun, EDM, GRID),
  "restart": lambda: solvers.restart(
    EDM, GRID, intervals=[(0.1, 0.5, 2, 1)]
  ),
  "langevin": lambda: solvers.langevin(EDM, GRID, 0.1),
  "with_langevin": lambda: solvers.with_langevin(EDM, TABLE, np.ones((2, 1))),
  "inject_noise": lambda: solvers.inject_noise(TABLE, EDM, 0.1),
  "denoise": lambda: solvers.final_step(TABLE, EDM, GRID, "denoise"),
  "first_order": lambda: solvers.final_step(TABLE, EDM, GRID, "first_order"),
  "first_step": lambda: solvers.analytical_first_step(TABLE, EDM)[0],
  "unic": lambda: solvers.unic(EDM, GRID),
  "normal_form": lambda: solvers.normal_form(TABLE, EDM),
  "transfer": lambda: solvers.transfer(TABLE, EDM, VP, 0.1),
  "usf": lambda: usf.table(usf.from_solver("ddim", EDM, GRID), EDM),
  "finishers": lambda: samplers.finishers(
    lambda t: solvers.ddim(EDM, [t, 0.0]), EDM, [0.1, 0.5]
  ),
  "bns": lambda: built(learning.bns(TABLE, EDM)),
  "ld3": lambda: built(learning.ld3(solvers.ddim, EDM, GRID)),
  "amed": lambda: built(learning.amed(EDM, GRID)),
}  # fmt: skip


def built(learner):
  theta, build = learner
  return build(jnp.asarray(theta, jnp.float32))


@pytest.mark.parametrize("name", KEPT)
def test_a_table_carries_the_process_that_it_was_built_for(name):
  table = KEPT[name]()
  expected = {"transfer": VP, "of both ends": FLOW}.get(name, EDM)
  assert table.process == expected
  assert type(table) is tables.Tableau
  assert len(table) == 5


@pytest.mark.parametrize(
  "change",
  [
    lambda t: jax.tree.map(jnp.asarray, t),
    lambda t: jax.jit(lambda t: t)(t),
    lambda t: jax.vmap(lambda t: t)(tables.stack([t, t])[0]),
    lambda t: tables.Tableau(*t),
    lambda t: tables.under(t, None),
  ],
)
def test_what_knows_numbers_alone_loses_the_process(change):
  table = change(solvers.ddim(with_nan(), [1.0, 0.5]))
  assert type(table) is tables.Tableau
  assert table.process is None
  assert not hasattr(table, "other")


@pytest.mark.parametrize("process", [EDM, VP, processes.pfgmpp(8.0)])
def test_a_pickled_table_keeps_its_process(process):
  table = pickle.loads(pickle.dumps(solvers.ddim(process, GRID)))
  assert type(table) is tables.Tableau
  assert table.process == process
  stack = tables.stack([table, table])[0]
  assert pickle.loads(pickle.dumps(stack)).process == process
  with pytest.raises(ValueError, match="the same times mean other noise"):
    agreement.check(model_of(FLOW), table)


def test_of_a_process_that_is_not_pickled_its_noise_levels_are_kept():
  own = processes.from_alpha_sigma(lambda t: 1 - t, lambda t: t, 0.01, 1.0)
  table = solvers.ddim(own, GRID)
  read = pickle.loads(pickle.dumps(table))
  chex.assert_trees_all_equal(tuple(read), tuple(table))
  agreement.check(model_of(FLOW), read)  # its levels are those of `own`
  with pytest.raises(ValueError, match="the same times mean other noise"):
    agreement.check(model_of(VP), read)
  again = pickle.loads(pickle.dumps(read))
  assert again.process == read.process
  stack = tables.stack([table, table])[0]
  assert pickle.loads(pickle.dumps(stack)).process is None
  assert pickle.loads(pickle.dumps(tables.under(table, None))).process is None


def test_the_process_is_no_part_of_the_tree():
  one, other = solvers.ddim(EDM, GRID), solvers.ddim(VP, GRID)
  assert jax.tree.structure(one) == jax.tree.structure(other)
  assert len(jax.tree.leaves(one)) == 5
  x = jnp.ones((4, 2))
  sampling.sample(KEY, seen, one, x)
  before = sampling.compilations()
  sampling.sample(KEY, seen, other, x)
  assert sampling.compilations() == before


def test_tables_of_two_processes_are_not_joined():
  one, other = solvers.ddim(EDM, GRID), solvers.ddim(VP, GRID)
  for join in (lambda: tables.concat(one, other),
               lambda: tables.stack([one, other])):  # fmt: skip
    with pytest.raises(ValueError, match="edm.*and vp_linear.*transfer"):
      join()


def test_tables_of_two_noises_are_not_joined():
  one, other = solvers.ddpm(EDM, GRID), solvers.ddim(processes.pfgmpp(8), GRID)
  for pair in ((one, other), (other, one)):
    with pytest.raises(ValueError, match="pfgmpp"):
      tables.concat(*pair)


def test_a_process_may_be_traced():
  """D as an argument: nothing that cannot be read is compared."""
  x = jnp.ones((2, 2))

  @jax.jit
  def end(d):
    p = processes.pfgmpp(d)
    model = oracles.exact(oracles.Empirical(x), p)
    return sampling.sample(KEY, model, TABLE, x)

  assert np.isfinite(end(4.0)).all()


def test_a_table_with_data_dimensions_is_looked_at():
  wide = solvers.ddim(VP, GRID)
  noise = np.zeros((*wide.noise.shape, 2))
  noise[..., 0] = 0.1
  wide = tables.under(wide._replace(noise=noise), None)
  agreement.check(model_of(VP), wide, VP)
  low = wide._replace(t=np.asarray([0.5, 1e-5]))
  with pytest.raises(ValueError, match="calls the model at t = 1e-05"):
    agreement.check(model_of(VP), low, VP)


def test_a_table_is_moved_from_its_own_process():
  with pytest.raises(ValueError, match="built for edm"):
    solvers.transfer(TABLE, VP, FLOW)


def test_a_file_keeps_what_tells_a_process_from_another(tmp_path):
  path = tmp_path / "table.npz"
  table = solvers.dpmpp_2m(EDM, GRID)
  tables.save(path, table)
  loaded = tables.load(path)
  chex.assert_trees_all_equal(tuple(loaded), tuple(table))
  agreement.check(model_of(EDM), loaded, EDM)
  agreement.check(seen, loaded)
  with pytest.raises(ValueError, match="vp_linear.*the table of edm"):
    sampling.sample(KEY, model_of(VP), loaded, jnp.ones((2, 2)))
  with pytest.raises(ValueError, match="a concatenation"):
    tables.concat(loaded, solvers.ddim(VP, GRID))
  assert tables.concat(loaded, table).process == EDM
  assert solvers.transfer(loaded, EDM, VP, 0.1).process == VP
  with pytest.raises(ValueError, match="pass its own process as source"):
    solvers.transfer(loaded, VP, EDM)
  # again from what was loaded, and not for other calls
  tables.save(path, loaded)
  assert tables.load(path).process == loaded.process
  tables.save(path, tables.take(loaded, slice(1, 2)))
  assert tables.load(path).process is None
  tables.save(path, tables.under(table, None))
  assert tables.load(path).process is None


def test_a_file_says_nothing_of_noise_that_it_cannot_name(tmp_path):
  p = processes.pfgmpp(8.0)
  path = tmp_path / "table.npz"
  table = solvers.ddim(p, GRID)
  tables.save(path, solvers.inject_noise(table, p, 0.1))
  assert tables.load(path).process is None
  tables.save(path, table)
  agreement.check(oracles.exact(oracles.Empirical(X), p), tables.load(path))


# --- what belongs to a model -------------------------------------------------


def denoiser(process, **options):
  network = networks.MLP(features=(4,), num_classes=2)
  params = network.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  return denoisers.from_linen(network, params, process, **options)


def experts(process):
  one = denoiser(process)
  stacked = jax.tree.map(lambda p: p[None], one.params)
  bare = dataclasses.replace(one, params=None)
  return denoisers.Experts(stacked, bare, (1.0, 0.0))


MODELS = {
  "denoiser": denoiser,
  "label": lambda p: denoisers.with_label(denoiser(p), 1),
  "exact": model_of,
  "cfg": lambda p: guidance.cfg(denoiser(p), label=0, null=2, scale=2.0),
  "classifier": lambda p: guidance.classifier_guided(
    denoiser(p), lambda x, t: x[:, 0], p
  ),
  "experts": experts,
  "along": lambda p: distillation.along(denoiser(p, jumps=True), p, GRID),
  "recentred": lambda p: solvers.Recentred(denoiser(p), *[GRID] * 4),
  "wrapped twice": lambda p: guidance.cfg(
    experts(p), label=0, null=2, scale=2.0
  ),
  "under": lambda p: distillation.trigflow.under(model_of(EDM), p),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_of_the_process_it_was_made_for(name):
  model = MODELS[name](VP)
  assert agreement.process_of(model) == VP
  with pytest.raises(ValueError, match="the model is of vp_linear"):
    sampling.sample(KEY, model, TABLE, jnp.ones((2, 2)))


def test_a_projection_is_of_the_sampler_s_process():
  known = samplers.inpaint(VP, X, jnp.ones((2, 2)))
  with pytest.raises(ValueError, match="the projection of vp_linear"):
    samplers.predictor_corrector(
      KEY, seen, TABLE, X, process=EDM, project=known
    )


def test_a_plain_function_is_of_no_process():
  assert agreement.process_of(seen) is None
  sampling.sample(KEY, seen, TABLE, jnp.ones((4, 2)))
  with pytest.raises(ValueError, match="process= is of vp_linear"):
    sampling.sample(KEY, seen, TABLE, (4, 2), process=VP)


DOORS = {
  "sample": lambda m, t, p: sampling.sample(KEY, m, t, X),
  "sample, a shape": lambda m, t, p: sampling.sample(
    KEY, m, t, (2, 2), process=p
  ),
  "predictor_corrector": lambda m, t, p: samplers.predictor_corrector(
    KEY, m, t, X, process=p
  ),
  "picard": lambda m, t, p: samplers.picard(KEY, m, t, X, process=p),
  "teach": lambda m, t, p: learning.teach(KEY, m, p, (2, 2), t),
  "evaluate": lambda m, t, p: populations.evaluate(
    populations.Problem(KEY, m, X, fitness.Rmse(X), np.arange(2)), [t]
  ),
  "calibration_set": lambda m, t, p: quantization.calibration_set(
    KEY, m, t, p, (2,)
  ),
  "teleport_sample": lambda m, t, p: samplers.teleport_sample(
    KEY, m, t, X, process=p, stats=oracles.fit(np.eye(2))
  ),
  "dmcmc": lambda m, t, p: samplers.dmcmc(
    KEY, m, tables.stack([t, t])[0], samplers.Chain(X, jnp.zeros(2, jnp.int32)),
    process=p, posterior=m, levels=[0.2, 0.5],
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOORS)
def test_a_table_of_another_process_is_refused_by_name(name):
  """A VP model, its process, and a table for EDM's times."""
  with pytest.raises(ValueError, match="noise levels") as refusal:
    DOORS[name](model_of(VP), TABLE, VP)
  said = str(refusal.value)
  for part in ("vp_linear(beta_min=0.1, beta_max=20)", "edm()", "transfer"):
    assert part in said


@pytest.mark.parametrize(
  "call",
  [
    lambda m, p: samplers.adaptive(KEY, m, None, X, process=p),
    lambda m, p: samplers.addim(KEY, m, GRID, X, process=p),
    lambda m, p: likelihood.log_likelihood(KEY, m, p, X),
    lambda m, p: guidance.classifier_guided(m, lambda x, t: x[:, 0], p),
    lambda m, p: guidance.clip_x0(m, p),
    lambda m, p: populations.converged(KEY, m, p, (2,), 2, steps=2),
    lambda m, p: samplers.ModelScore(m, 0.5, p),
    lambda m, p: fields.score_of(m, p),
    lambda m, p: diagnostics.diffusion_time.elbo_curve(KEY, m, p, X, [0.5]),
    lambda m, p: diagnostics.diffusion_time.score_gap(
      KEY, model_of(p), m, p, X, [0.5]
    ),
    lambda m, p: diagnostics.wasserstein_flow.audit(KEY, m, p, X, [0.5]),
    lambda m, p: learning.v3_statistics.estimate(KEY, m, p, X),
    lambda m, p: oracles.unexplained(KEY, model_of(p), m, p, X, [0.5]),
    lambda m, p: sampling.sample(
      KEY, m, tables.under(TABLE, None), (2, 2), process=p
    ),
  ],
)
def test_a_process_that_is_not_the_model_s_is_refused_by_name(call):
  with pytest.raises(ValueError, match="the model.* of vp_linear") as refusal:
    call(model_of(VP), EDM)
  assert "edm()" in str(refusal.value)


def small(process):
  network = networks.MLP(features=(4,))
  params = network.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  return denoisers.from_linen(network, params, process)


@pytest.mark.parametrize("name", ["consistency_distillation", "sim", "reflow"])
def test_a_student_is_of_its_teacher_s_process(name):
  build, sgd = getattr(distillation, name), optax.sgd(0.1)
  build(model_of(EDM), small(processes.edm(0.01, 60.0)), optimizer=sgd)
  build(seen, small(EDM), optimizer=sgd)
  with pytest.raises(ValueError, match="the teacher is of vp_linear.*under"):
    build(model_of(VP), small(EDM), optimizer=sgd)
  other = oracles.exact(oracles.Empirical(np.ones((1, 2))), processes.pfgmpp(8))
  with pytest.raises(ValueError, match="whose noise is StudentT"):
    build(other, small(EDM), optimizer=sgd)


def test_a_table_that_is_learned_is_of_the_model_s_process():
  theta, build = learning.bns(TABLE, EDM)
  lessons = [learning.Lessons(X + i, X) for i in range(2)]
  rounds = learning.descend(KEY, model_of(VP), build, theta, *lessons)
  with pytest.raises(ValueError, match="descend: the model is of vp_linear"):
    next(rounds)


@pytest.mark.parametrize(
  ("process", "table"),
  [
    (VP, lambda p: solvers.ddim(dataclasses.replace(p, t_min=1e-5), GRID)),
    (EDM, lambda p: solvers.ddim(processes.edm(0.1, 1.0), GRID)),
    (VP, lambda p: solvers.transfer(TABLE, EDM, p, 0.1)),
    (VP, lambda p: tables.under(solvers.ddim(p, GRID), None)),
    (FLOW, lambda p: solvers.ddim(p, [1.0, 0.5, 0.0])),
    (EDM, lambda p: jax.tree.map(
      np.float32, solvers.heun_churn(p, [80.0, 2.0, 0.002], churn=20.0))),
    (VP, lambda p: solvers.encoder(solvers.ddim, p, [1.0, 0.5, 0.001])),
  ],
)  # fmt: skip
def test_what_belongs_together_runs(process, table):
  agreement.check(model_of(process), table(process), process)


def test_a_table_of_no_process_may_not_leave_the_model_s_times():
  table = tables.under(solvers.ddim(EDM, [80.0, 2.0]), None)
  with pytest.raises(ValueError, match="calls the model at t = 80"):
    sampling.sample(KEY, model_of(VP), table, X)
  low = tables.under(
    solvers.ddim(processes.edm(1e-6, 1.0), [1.0, 1e-5, 1e-6]), None
  )
  with pytest.raises(ValueError, match="calls the model at t = 1e-05"):
    sampling.sample(KEY, model_of(EDM), low, X)


def test_a_process_known_while_tracing_is_compared_then():
  run = jax.jit(lambda x: sampling.sample(KEY, model_of(VP), TABLE, x))
  with pytest.raises(ValueError, match="the model is of vp_linear"):
    run(X)
  # as an argument a table is numbers alone, and passes
  run = jax.jit(lambda x, t: sampling.sample(KEY, model_of(VP), t, x))
  assert run(X, TABLE).shape == X.shape


def test_a_table_that_draws_is_of_the_model_s_noise():
  p = processes.pfgmpp(8.0)
  model = oracles.exact(oracles.Empirical(np.zeros((1, 2))), p)
  with pytest.raises(ValueError, match="draws its noise, Normal"):
    sampling.sample(KEY, model, solvers.ddpm(EDM, GRID), X)
  agreement.check(model, TABLE, p)  # of the ODE alone
  agreement.check(model, solvers.inject_noise(solvers.ddim(p, GRID), p, 0.1))


# --- the scale of the start --------------------------------------------------


def heard(x, process, t):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    agreement.check_start(x, process, t)
  return [str(w.message) for w in caught]


NOISE = jax.random.normal(KEY, (64, 4))
DATA = 255.0 * jax.random.uniform(KEY, (64, 4))


@pytest.mark.parametrize(
  ("x", "process", "t", "warned"),
  [
    (NOISE, EDM, 80.0, True),
    (NOISE.astype(jnp.bfloat16), EDM, 80.0, True),
    (80.0 * NOISE, VP, 1.0, True),
    (np.zeros((64, 4)), FLOW, 1.0, True),
    (NOISE, processes.pfgmpp(1.0), 80.0, True),
    (80.0 * NOISE, EDM, 80.0, False),
    (0.7 * 80.0 * NOISE, EDM, 80.0, False),  # a temperature
    (DATA + 80.0 * NOISE, EDM, 80.0, False),  # data in other units
    (NOISE, VP, 1.0, False),
    (NOISE, EDM, 2.0, False),  # signal is left: it may be an image
    (0.1 * NOISE, VP, 0.3, False),
    (NOISE[:4], EDM, 80.0, False),  # too few values to tell
    (processes.pfgmpp(0.5).prior(KEY, (64, 4)), processes.pfgmpp(0.5), 80.0,
     False),
    (NOISE, None, 80.0, False),
    ((NOISE, NOISE), EDM, 80.0, False),
  ],
)  # fmt: skip
def test_noise_of_a_wrong_scale_is_heard_of(x, process, t, warned):
  said = heard(x, process, t)
  assert len(said) == warned
  if warned:
    assert "process.prior(key, shape)" in said[0]
    assert f"sigma = {float(process.sigma(t)):.4g}" in said[0]


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray])
def test_of_a_large_start_some_values_are_looked_at(make):
  """64 samples and 2**16 values, which others cannot change."""
  x = np.array(80.0 * jax.random.normal(KEY, (128, 40, 40, 3)))
  some = agreement._some(make(x))
  assert some.shape[0] == 64 and 2**14 < some.size <= 2**16
  assert not heard(make(x), EDM, 80.0)
  assert heard(make(x / 80.0), EDM, 80.0)
  np.testing.assert_array_equal(some[:, :120], x[:64, 0].reshape(64, -1))
  assert agreement._some(make(x[:1])).size <= 2**16
  chex.assert_trees_all_equal(agreement._some(make(x[:3, :2, 0, 0])),
                              x[:3, :2, 0, 0].astype(np.float64))  # fmt: skip


@pytest.mark.parametrize("door", ["sample", "picard"])
def test_samplers_listen_for_it_outside_of_transformations(door):
  table = solvers.ddim(EDM, [80.0, 2.0])
  run = lambda x: (
    samplers.picard(KEY, seen, table, x, process=EDM)
    if door == "picard"
    else sampling.sample(KEY, seen, table, x)
  )
  with pytest.warns(UserWarning, match="x has the scale 0.9"):
    run(NOISE)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    run(80.0 * NOISE)
    jax.jit(run)(NOISE)
    sampling.sample(KEY, seen, table, (64, 4), process=EDM)
