"""What each measure of a batch returns over two devices, for measures_test.

  python -m tests.guests.measures_run

with two virtual devices, the batch on an Explicit mesh. Prints one JSON object:
for every measure how far its numbers lie from those on one device, over the
largest of them; or what was raised.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import diagnostics
from jaxdiff import grids
from jaxdiff import jacobians
from jaxdiff import learning
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from tests.guests import samplers_run

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 10.0)
LAW = oracles.g2()
MODEL = oracles.exact(LAW, EDM)
DATA = np.random.default_rng(0).normal(size=(20, 2))
FEW = oracles.fit(DATA)
CLASSES = oracles.fit(DATA, labels=np.arange(20) % 2)
GRID = grids.karras(EDM, 3)
TIMES = np.asarray([0.5, 2.0, 8.0])


def bent(x):
  return jnp.stack([jnp.sin(x[:, 0] * x[:, 1]), x[:, 0] ** 2], axis=1)


def potential(x, t):
  return -0.5 * jnp.sum(x**2, axis=1) / (1.0 + t**2)


def signs(x):
  return jacobians.rademacher(KEY, x, count=3)


def loss(made):
  params = jnp.asarray(1.0)
  return lambda x: made(KEY, params, {"image": x})[0]


def statistics(x, trace):
  found = learning.v3_statistics.estimate(
    KEY, MODEL, EDM, x, m=9, trace=trace, batch=2
  )
  return np.stack([found.l, found.s, found.b])


# x [batch, 2] -> an array
CALLS = {
  "jacobian": lambda x: jacobians.jacobian(bent, x),
  "divergence": lambda x: jacobians.divergence(bent, x),
  "divergence by probes": lambda x: jacobians.divergence(bent, x, signs(x)),
  "asymmetry": lambda x: diagnostics.conservativity.asymmetry(bent, x),
  "asymmetry by probes": lambda x: diagnostics.conservativity.asymmetry(
    bent, x, signs(x)
  ),
  "circulation": lambda x: diagnostics.conservativity.circulation(
    KEY, bent, x, 0.3, 16
  ),
  "path_gap": lambda x: diagnostics.wasserstein_flow.path_gap(bent, x, x + 1.0),
  "audit": lambda x: np.stack(
    diagnostics.wasserstein_flow.audit(KEY, MODEL, EDM, x, TIMES, points=16)
  ),
  "audit by probes": lambda x: np.stack(
    diagnostics.wasserstein_flow.audit(
      KEY, MODEL, EDM, x, TIMES, points=16, probes=signs(x)
    )
  ),
  "elbo_curve": lambda x: np.stack(
    diagnostics.diffusion_time.elbo_curve(KEY, MODEL, EDM, x, TIMES, nodes=3)
  ),
  "score_gap": lambda x: diagnostics.diffusion_time.score_gap(
    KEY, oracles.exact(FEW, EDM), MODEL, EDM, x, TIMES, nodes=3
  ),
  "flow_jacobian": lambda x: diagnostics.intrinsic_dimension.flow_jacobian(
    MODEL, EDM, GRID, x, solvers.euler
  ),
  "local_dimension": lambda x: diagnostics.intrinsic_dimension.local_dimension(
    MODEL, EDM, x, 0.5
  ),
  "profile": lambda x: np.stack(
    diagnostics.fokker_planck.profile(KEY, MODEL, EDM, x, TIMES)[:2]
  ),
  "condition_residual": lambda x: diagnostics.gauge.condition_residual(
    bent, lambda x: x, x
  ),
  "potential_residual": lambda x: losses.potential_residual(
    potential, EDM, x, 1.0
  ),
  "potential_residual by probes": lambda x: losses.potential_residual(
    potential, EDM, x, 1.0, probes=signs(x)
  ),
  "score_residual": lambda x: losses.score_residual(
    lambda x, t: bent(x) / (1.0 + t[:, None] ** 2), EDM, x, 1.0
  ),
  "fokker_planck": loss(
    losses.fokker_planck(
      lambda p, x, t: p * potential(x, t),
      EDM,
      box=12.0,
      collocation=4,
      boundary=1.0,
    )
  ),
  "implicit_score": loss(losses.implicit_score(lambda p, x: p * bent(x))),
  "mixture": lambda x: MODEL(x, 1.0).x0,
  "log_prob": lambda x: LAW.log_prob(x, 1.0, 0.5),
  "score": lambda x: LAW.score(x, 1.0, 0.5),
  "posterior_sample": lambda x: LAW.posterior_sample(KEY, x, 1.0, 0.5),
  "empirical": lambda x: oracles.exact(oracles.Empirical(DATA), EDM)(x, 1.0).x0,
  "low rank": lambda x: oracles.exact(FEW, EDM)(x, 1.0).x0,
  "low rank, by class": lambda x: (
    CLASSES.predict(x, 1.0, 0.5, jnp.arange(4) % 2).x0
  ),
  "v3_statistics, exact": lambda x: statistics(x, "exact"),
  "v3_statistics, hutchinson": lambda x: statistics(x, "hutchinson"),
  "energy": lambda x: metrics.energy_distance(x, x + 1.0),
  "sliced": lambda x: metrics.sliced_wasserstein(KEY, x, x + 1.0),
}


# JAX differentiates what lies on an Explicit mesh in a program alone
PROGRAMS = (
  "flow_jacobian",
  "potential_residual",
  "potential_residual by probes",
  "score_residual",
  "fokker_planck",
)


def compared(name):
  call = jax.jit(CALLS[name]) if name in PROGRAMS else CALLS[name]
  x = EDM.prior(KEY, (4, 2)) / 5
  alone = np.asarray(call(x))
  mesh = jax.make_mesh(
    (2,), ("data",), axis_types=(samplers_run.AxisType.Explicit,)
  )
  over = jax.NamedSharding(mesh, jax.P("data"))
  try:
    found = np.asarray(call(jax.device_put(x, over)))
  except Exception as error:  # what is raised is the result
    return f"{type(error).__name__}: {str(error)[:300]}"
  return float(np.max(abs(found - alone)) / np.max(abs(alone)))


if __name__ == "__main__":
  print(json.dumps({name: compared(name) for name in CALLS}))
