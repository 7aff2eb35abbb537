"""What a population of tables in one program saves over one table at a time.

  python -m experiments.bench.search

1,000 random solver schedules (bred by `jaxdiff.search.s3`) of 8 calls on the
digits mixture under EDM noise, judged by their rmse to the converged ODE from
the same noises: in one call of one compiled program; one at a time, warm, by
`jaxdiff.sample`, which compiles once for all of them; and one at a time with a
program for each, as where a solver is code, from a few. A minute on two cores.

On a CPU a table alone keeps the cores busy, and what is saved is Python and
dispatch: the cheaper the target and the fewer the noises, the more. An
accelerator is idle with one table. Seconds of the processor stand beside those
of the clock, which a busy machine stretches.
"""

import json
import platform
import time

import jax
import numpy as np
from absl import flags

from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff.search import populations
from jaxdiff.search import s3
from jaxdiff.search import usf

from ..parts import console

FLAGS = flags.FLAGS


def candidates(process, calls, size):
  """Returns tables of random mutations of the known solvers."""
  config = s3.Config(calls, p_mutate=0.9)
  rng = np.random.default_rng(0)
  known = s3.seeds(process, config)
  made = list(known)
  while len(made) < size:
    parent = known[rng.integers(len(known))]
    child = s3.mutate(rng, parent, config)
    made.append(s3.repair(rng, child, process, config))
  return [usf.table(schedule, process) for schedule in made[:size]]


def main() -> None:
  process = processes.edm()
  model = oracles.exact(getattr(oracles, FLAGS.target)(), process)
  population = candidates(process, FLAGS.calls, FLAGS.tables)
  results = {}
  for noises in map(int, FLAGS.noises):
    results[noises] = measure(process, model, population, noises)
  if FLAGS.json:
    with open(FLAGS.json, "w") as f:
      json.dump(
        dict(
          results=results,
          tables=FLAGS.tables,
          calls=FLAGS.calls,
          chunk=FLAGS.chunk,
          device=jax.devices()[0].device_kind,
          jax=jax.__version__,
          machine=platform.machine(),
        ),
        f,
        indent=1,
      )


def measure(process, model, population, noises):
  """Times the three ways on as many noises; prints and returns seconds."""
  key = jax.random.key(0)
  shape = np.shape(model.distribution.means)[1:]
  task = populations.converged(key, model, process, shape, noises, steps=50)
  judge = jax.jit(lambda fitness, x: fitness(x))
  many = len(population)

  def together():
    return populations.evaluate(task, population, chunk=FLAGS.chunk)

  def alone(some=population):
    return np.asarray(
      [
        judge(task.fitness, sampling.sample(key, model, table, task.start))
        for table in some
      ]
    )

  jax.clear_caches()
  cold_alone, one = _seconds(alone)
  cold_together, other = _seconds(together)
  agree = float(np.nanmax(abs(one / other - 1.0)))
  pairs = [
    (_seconds(together)[0], _seconds(alone)[0]) for _ in range(FLAGS.repeat)
  ]
  warm_together, warm_alone = np.median(pairs, axis=0)

  def fresh():
    for table in population[: FLAGS.fresh]:
      jax.clear_caches()
      alone([table])

  each = _seconds(fresh)[0] / FLAGS.fresh * many
  results = dict(
    together=warm_together,
    alone=warm_alone,
    together_compiling=cold_together,
    alone_compiling=cold_alone,
    program_each=each,
  )
  _tell(results, agree, many, noises)
  return dict(agree=agree) | {k: v.tolist() for k, v in results.items()}


def _seconds(f):
  """Returns (seconds by the clock and of the processor f64[2], f's value)."""
  wall, busy = time.perf_counter(), time.process_time()
  value = f()
  wall, busy = time.perf_counter() - wall, time.process_time() - busy
  return np.asarray([wall, busy]), value


def _tell(results, agree, many, noises):
  """Prints the table of what the three ways took."""
  said = dict(
    together="in one program",
    alone="one at a time",
    together_compiling="in one program, compiling it",
    alone_compiling="one at a time, compiling once",
    program_each=f"a program for each (from {FLAGS.fresh})",
  )
  print(
    f"{many} tables of {FLAGS.calls} calls, {noises} noises, {FLAGS.target},"
    f" {jax.devices()[0].device_kind}; the same fitness to {agree:.1e}\n"
    f"{'':36s}{'s':>10}{'CPU s':>10}{'ratio':>10}{'CPU':>8}"
  )
  for name, (wall, busy) in results.items():
    base = results["together" if name == "alone" else "together_compiling"]
    ratio = "" if "together" in name else f"{wall / base[0]:9.1f}x"
    ratio += "" if "together" in name else f"{busy / base[1]:7.1f}x"
    print(f"  {said[name]:34s}{wall:10.2f}{busy:10.2f}{ratio}", flush=True)


def define_flags() -> None:
  """Defines the flags of the command line."""
  flags.DEFINE_integer("tables", 1000, "Candidates.", lower_bound=2)
  flags.DEFINE_integer("calls", 8, "Network calls.", lower_bound=2)
  flags.DEFINE_list("noises", ["16", "64"], "Noises, several in turn.")
  flags.DEFINE_integer(
    "chunk", None, "Candidates at once; by default what suits the device."
  )
  flags.DEFINE_enum(
    "target", "digits_mixture", ["digits_mixture", "grid25", "g16"], "Oracle."
  )
  flags.DEFINE_integer("repeat", 3, "Timed rounds.", lower_bound=1)
  flags.DEFINE_integer(
    "fresh", 4, "Tables to compile a program for each.", lower_bound=1
  )
  flags.DEFINE_string("json", None, "File to write the numbers to.")


if __name__ == "__main__":
  define_flags()
  console.run(main)
