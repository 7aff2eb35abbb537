"""What one seed gives on 1, 2, 4 and 8 devices, for sharded_test.py.

  python -m tests.guests.sharded_run CASE...

with eight virtual devices. A case is DEVICES-PARAMS for the U-Net, as in
8-sharded, DEVICES-elementwise, DEVICES-gathers for the places where the program
gathers parameters, or DEVICES-loaded for parameters read from a checkpoint.
Prints one JSON object, by case.
"""

import dataclasses
import hashlib
import json
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checkpoints
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import jobs
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import parallel
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from jaxdiff import tree

EDM = processes.edm()
SHAPE = (8, 8, 1)
KEY = jax.random.key(0)


OPTIONS = dict(channels=32, multipliers=(1,), blocks=1, attention=())


def unet():
  """Returns a small U-Net in which every parameter matters."""
  network = networks.UNet(**OPTIONS, num_classes=3)
  init = lambda key: network.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1))
  draw = np.random.Generator(np.random.Philox(0))
  params = jax.tree.map(
    lambda leaf: draw.normal(0, 0.1, leaf.shape).astype(np.float32),
    jax.eval_shape(init, KEY)["params"],
  )
  return denoisers.from_linen(network, params, EDM)


# Keeps what the network is asked first: the initial noise.
NOISE = sampling.Collector(
  lambda n, info: jnp.zeros(info.y.shape, info.y.dtype),
  lambda kept, info: jnp.where(info.step == 0, info.y, kept),
)


def digest(x):
  return hashlib.sha256(np.asarray(x).tobytes()).hexdigest()


def run(case):
  devices, kind = case.split("-")
  mesh = jobs.mesh_of(int(devices))
  own = dict(gathers=gathers, loaded=loaded, elementwise=elementwise)
  return own[kind](mesh) if kind in own else with_unet(mesh, kind)


def held(model):
  """Returns the part of the parameters that one device holds."""
  leaves = jax.tree.leaves(model.params)
  here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
  return here / sum(leaf.size for leaf in leaves)


def with_unet(mesh, params):
  model = jobs.place(unet(), mesh, params)
  table = solvers.ddpm(EDM, grids.karras(EDM, 4))
  job = jobs.Job(model, table, SHAPE, classes=3, mesh=mesh)
  x, noise = jobs.launch(job, np.arange(16), NOISE)
  return dict(
    devices=len(x.sharding.device_set),
    held=held(model),
    noise=digest(noise),
    image=np.asarray(x).ravel().tolist(),
  )


def elementwise(mesh):
  def model(x, t):
    v = 1.0 + t * t
    return predictions.Prediction(x / v, x * (t / v))

  x = sampling.sample(
    KEY,
    model,
    solvers.heun_churn(EDM, grids.karras(EDM, 9), churn=9.0),
    (64, *SHAPE),
    process=EDM,
    sharding=parallel.batch_sharding(mesh) if mesh else None,
  )
  return dict(devices=len(x.sharding.device_set), image=digest(x))


def gathers(mesh):
  """Returns what programs exchange in their loop, and before it."""
  sharding = parallel.batch_sharding(mesh)
  x = jax.device_put(jnp.ones((16, *SHAPE)), sharding)
  table = solvers.euler(EDM, grids.karras(EDM, 4))
  gathered = jobs.place(unet(), mesh, "sharded")
  plain = dataclasses.replace(gathered, apply=unet().apply)
  out = {}
  for name, model in dict(gathered=gathered, plain=plain).items():
    draw = lambda m, x: sampling.sample(KEY, m, table, x, sharding=sharding)
    text = jax.jit(draw).lower(model, x).compile().as_text()
    loop, entry = text.split("\nENTRY")
    out[name] = {
      f"{op} {where}": len(re.findall(rf" {op}(?:-start)?\(", part))
      for op in ("all-gather", "all-reduce", "all-to-all")
      for where, part in (("in loop", loop), ("before", entry))
    }
  return out


def loaded(mesh):
  """Returns what a device holds of parameters read from a checkpoint."""
  model = unet()
  config = models.ModelConfig(
    shape=SHAPE, network="unet", network_options=OPTIONS, num_classes=3
  )
  with tempfile.TemporaryDirectory() as folder:
    models.save_config(folder, config)
    opened = checkpoints.open(folder)
    opened.save(1, {"ema_params": model.params})
    opened.close()
    read = training.load_denoiser(folder, mesh=mesh)
  same = tree.digest(read.params) == tree.digest(model.params)
  return dict(held=held(read), same=same)


if __name__ == "__main__":
  print(json.dumps({case: run(case) for case in sys.argv[1:]}))
