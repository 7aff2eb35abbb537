"""A model may answer with a plain pair (x0, eps): all who take one take it."""

import ast
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import diagnostics
from jaxdiff import guidance
from jaxdiff import likelihood
from jaxdiff import predictions
from jaxdiff import samplers
from jaxdiff import search
from jaxdiff import solvers
from jaxdiff.diagnostics import wasserstein_flow
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts import trigflow

ROOM = pathlib.Path(jd.__file__).parent
EDM = jd.edm()
VP = jd.vp_linear()
KEY = jax.random.key(0)
GRID = jd.grids.karras(EDM, 3)
X = EDM.prior(KEY, (4, 2))
NEAR = X / 80.0
TABLE = solvers.ddpm(EDM, GRID)


def plain(x, t, label=None):
  """The exact denoiser of a Gaussian of variance 1/9, as a tuple."""
  del label
  t = jnp.reshape(t, jnp.shape(t) + (1,) * (x.ndim - 1)) if jnp.ndim(t) else t
  total = 1 / 9 + t**2
  return (x / 9) / total, t * x / total


def named(x, t, label=None):
  return predictions.Prediction(*plain(x, t, label))


DOORS = {
  "sample": lambda m: jd.sample(KEY, m, TABLE, X),
  "predictor_corrector": lambda m: samplers.predictor_corrector(
    KEY, m, TABLE, X, process=EDM
  ),
  "addim": lambda m: samplers.addim(KEY, m, GRID, X, process=EDM),
  "adaptive": lambda m: samplers.adaptive(
    KEY, m, None, X, process=EDM, rtol=0.1, atol=0.1
  ),
  "picard": lambda m: samplers.picard(
    KEY, m, jd.euler(EDM, GRID), X, process=EDM
  ),
  "side_by_side": lambda m: samplers.side_by_side(
    KEY, m, jd.solvers.epd(EDM, GRID), X, process=EDM
  ),
  "langevin": lambda m: samplers.langevin(
    KEY, samplers.ModelScore(m, 1.0, process=EDM), 2, NEAR, step=0.1
  ),
  "likelihood": lambda m: likelihood.log_likelihood(
    KEY, m, EDM, NEAR, solver=jd.euler, grid=GRID
  ),
  "cfg": lambda m: jd.cfg(m, label=1, null=2, scale=2.0)(NEAR, 1.0),
  "guided": lambda m: guidance.guided(m, null=2, scale=2.0)(NEAR, 1.0, 1),
  "classifier": lambda m: guidance.classifier_guided(
    m, lambda x, t: x.sum(1), EDM
  )(NEAR, 1.0),
  "unexplained": lambda m: jd.oracles.unexplained(
    KEY, m, named, EDM, NEAR, [1.0]
  ),
  "gits": lambda m: (
    search.gits.ladder(KEY, m, EDM, X, times=GRID, steps=1).costs
  ),
  "score_of": lambda m: diagnostics.fields.score_of(m, EDM)(NEAR, 1.0),
  "gauge": lambda m: diagnostics.gauge.rotate(m, np.zeros((2, 2)), EDM)(
    NEAR, jnp.float32(1.0)
  ),
  "local_dimension": lambda m: diagnostics.intrinsic_dimension.local_dimension(
    m, EDM, NEAR, 0.1
  ),
  "velocity": lambda m: wasserstein_flow.velocity(m, EDM, NEAR, 1.0),
  "tangents": lambda m: tangents.velocity_of(
    "teacher", m, NEAR, jnp.ones(4), (), None
  ),
  "under": lambda m: trigflow.under(m, VP, EDM)(NEAR, jnp.float32(0.5)),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_plain_pair_is_a_prediction(name):
  chex.assert_trees_all_equal(DOORS[name](plain), DOORS[name](named))


def test_no_half_is_taken_of_an_answer_that_was_not_made_a_prediction():
  """`model(x, t).x0` fails for a pair; `ask(model, x, t).x0` does not."""
  allowed = {
    "ask",
    "predictions.ask",
    "jnp.finfo",
    "linear",  # a derivative of a Prediction
    "real.predict",  # an oracle's own
  }
  found = []
  for path in ROOM.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.Attribute) or node.attr not in ("x0", "eps"):
        continue
      if not isinstance(node.value, ast.Call):
        continue
      if ast.unparse(node.value.func) not in allowed:
        found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
  assert not found


@pytest.mark.parametrize(
  ("answer", "error", "match"),
  [
    (lambda x: x, TypeError, "returns predictions.Prediction.*got"),
    (lambda x: (x, x, x), TypeError, "got tuple"),
    (lambda x: (x, x[:, :1]), ValueError, r"model's eps has shape \(4, 1\)"),
  ],
)
@pytest.mark.parametrize("door", ["sample", "cfg", "score_of", "velocity"])
def test_what_is_no_pair_is_refused_everywhere(door, answer, error, match):
  def model(x, t, label=None):
    del t, label
    return answer(x)

  if door == "cfg":  # asks for both halves at once
    match = match.replace("4", "8")
  with pytest.raises(error, match=match):
    DOORS[door](model)
