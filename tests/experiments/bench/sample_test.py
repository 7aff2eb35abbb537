"""The bench of sampling measures one loop of one program, or refuses to."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import sample
from jaxdiff import grids
from jaxdiff import jobs
from jaxdiff import models
from jaxdiff import sampling
from jaxdiff import solvers

SHAPE = (2, 2, 1)
CALLS = 3


@pytest.fixture(scope="module")
def job():
  config = models.ModelConfig(
    shape=SHAPE, network="mlp", network_options=dict(features=(8,), embedding=8)
  )
  model = models.make_denoiser(config)
  zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
  model = jax.tree.map(zeros, model)
  table = solvers.euler(model.process, grids.karras(model.process, CALLS))
  return jobs.Job(model, table, SHAPE)


def test_a_job_is_one_loop_and_is_counted(job):
  found = sample.measure(job, batch=4, repeats=2)
  assert found["loops"] == 1 and found["calls"] == CALLS
  assert found["slowest"] <= found["images_per_second"] <= found["fastest"]
  width, inputs = 8, 4  # x and the embedding of width 8 enter together
  products = 2 * ((inputs + 8) * width + width * inputs)
  assert found["gflops_per_image"] * 1e9 / CALLS > products
  assert found["flops"] == pytest.approx(found["gflops_per_image"] * 1e9)
  rows = [found | dict(device="cpu", devices=1, params="replicated")]
  rows[0] |= dict(dtype="float32", utilisation=0.125)
  head, rule, row = sample.markdown(rows).splitlines()
  assert head.count("|") == rule.count("|") == row.count("|")
  assert "| 12.5 % |" in row


def unrolled(job, x):
  for t in job.table.t:
    x = job.model(x, jnp.float32(t)).x0
  return x


def watched(job, x):
  return sampling.run(
    jax.random.key(0),
    lambda key, t, x: (jax.debug.callback(print, t), (unrolled(job, x), None))[
      1
    ],
    jnp.asarray(job.table.t, jnp.float32),
    x,
  )[0]


@pytest.mark.parametrize("program", [unrolled, watched])
def test_a_program_of_another_kind_is_refused(job, program):
  x = jnp.ones((4, *SHAPE))
  compiled = jax.jit(lambda x: program(job, x)).lower(x).compile()
  with pytest.raises(AssertionError, match="expected one loop"):
    sample.one_loop(compiled.as_text())
