"""A small sampling job that can be killed, for sample_job_test.py.

  python -m tests.jobs_run FOLDER SHARD

draws the job of `draw` and stops for good in the middle of writing the shard
SHARD, saying so: it is to be killed there.
"""

import os
import pathlib
import sys
import time

from jaxdiff import grids
from jaxdiff import jobs
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.data import shards

EDM = processes.edm()
MODEL = oracles.exact(oracles.g2(), EDM)
TABLE = solvers.ddpm(EDM, grids.karras(EDM, 3))
NUM, SHARD, BATCH = 18, 4, 2


def draw(folder, **options):
  """Draws, or goes on with, 18 samples in shards of four; returns how many."""
  job = jobs.Job(options.pop("model", MODEL), TABLE, (2,), seed=3)
  sizes = dict(num=NUM, shard_size=SHARD, batch=BATCH) | options
  return jobs.write(job, pathlib.Path(folder), **sizes)


def main(folder, number):
  sync = os.fsync

  def stuck(handle):
    name = shards.path_of(folder, number).stem
    if list(pathlib.Path(folder).glob(f".{name}-*.partial")):
      print("writing", flush=True)
      time.sleep(600)
    sync(handle)

  os.fsync = stuck
  draw(folder)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
