"""Reference networks at reduced width: their weights, inputs and outputs.

Run as a script, with PyTorch and the checkouts that golden/README.md names, it
writes the outputs of the authors' own code to golden/*.npz. The tests rebuild
weights and inputs from names and shapes, and so need neither.
"""

import hashlib
import json
import pathlib
import sys
import types

import numpy as np

from tests import ROOT

GOLDEN = ROOT / "tests" / "golden"
SIZE = 8
SIGMA = np.array([0.05, 1.0, 20.0], np.float32)
STEPS = np.array([10, 400, 900])  # of discrete processes
TIMES = np.array([0.05, 0.4, 0.9], np.float32)  # of score_sde's

_SONG = dict(
  img_resolution=SIZE,
  img_channels=3,
  model_type="SongUNet",
  model_channels=16,
  channel_mult=[1, 2],
  num_blocks=1,
  attn_resolutions=[4],
)
_NCSNPP = dict(
  embedding_type="fourier",
  encoder_type="residual",
  channel_mult_noise=2,
  resample_filter=[1, 3, 3, 1],
)
_ADM = dict(
  img_resolution=SIZE,
  img_channels=3,
  model_type="DhariwalUNet",
  model_channels=32,
  channel_mult=[1, 4],
  num_blocks=1,
  attn_resolutions=[4],
)
_EDM2 = dict(
  img_resolution=SIZE,
  channels_per_head=16,
  model_channels=16,
  channel_mult=[1, 2],
  num_blocks=1,
  attn_resolutions=[4],
)
EDM = {  # class and arguments
  "vp": ("VPPrecond", _SONG),
  "ve": ("VEPrecond", _SONG | _NCSNPP),
  "edm": ("EDMPrecond", _SONG | dict(label_dim=4, augment_dim=9)),
  "skip": (
    "VEPrecond",
    _SONG
    | dict(
      channel_mult=[1, 2, 2],
      encoder_type="skip",
      decoder_type="skip",
      resample_filter=[1, 3, 3, 1],
    ),
  ),
  "adm": ("EDMPrecond", _ADM | dict(label_dim=4, augment_dim=9)),
  "iddpm": ("iDDPMPrecond", _ADM),
  "edm2": ("Precond", _EDM2 | dict(img_channels=3, label_dim=4)),
  "edm2_uncond": (
    "Precond",
    _EDM2
    | dict(
      img_channels=4,
      label_dim=0,
      channel_mult_noise=2,
      resample_filter=[1, 3, 3, 1],
    ),
  ),
}
# Configuration of score_sde: the network's width, and what differs from DDPM++.
_FIR = dict(fir=True, progressive_input="residual")
_SKIP = dict(progressive="output_skip", progressive_input="input_skip")
_VE = dict(scale_by_sigma=True)
_FOURIER = dict(embedding_type="fourier")
SONG = {
  "vp/cifar10_ddpmpp_continuous": (16, {}),
  "vp/cifar10_ncsnpp": (16, _FIR),
  "subvp/cifar10_ncsnpp_continuous": (16, _FIR),
  "ve/cifar10_ncsnpp_continuous": (16, _FIR | _VE | _FOURIER),
  "ve/cifar10_ncsnpp": (16, _FIR | _VE),
  "ve/bedroom_ncsnpp_continuous": (16, _FIR | _VE | _FOURIER | _SKIP),
  "vp/ddpm/cifar10": (128, dict(name="ddpm")),
  "ve/cifar10_ddpm": (128, dict(name="ddpm") | _VE),
}


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """Returns f64[shape] standard normals, a function of name and shape alone."""
  text = f"{seed} {name} {list(shape)}".encode()
  key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
  generator = np.random.Generator(np.random.Philox(key=key))
  return generator.standard_normal(shape)


def weight(name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
  """Returns f32[shape]: no weight is zero, and magnitudes are kept."""
  value = draw(name, shape)
  last = name.replace("/", ".").rpartition(".")[2]
  if last in ("freqs", "W") and len(shape) == 1:
    value *= 4.0
  elif last == "phases":
    value *= 2 * np.pi
  elif len(shape) == 0:  # gains
    value = 0.5 + 0.1 * value
  elif len(shape) == 1:
    value = (last in ("weight", "scale")) + 0.1 * value
  else:
    value /= np.sqrt(fan_in)
  return np.asarray(value, np.float32)


def torch_weights(shapes: dict) -> dict[str, np.ndarray]:
  """Returns the state dict of a torch network."""
  fan_in = lambda shape: int(np.prod(shape[1:]))
  return {k: weight(k, tuple(s), fan_in(s)) for k, s in shapes.items()}


def flax_weights(shapes: dict) -> dict[str, np.ndarray]:
  """Returns the flat parameters of a Flax network."""
  fan_in = lambda shape: int(np.prod(shape[:-1]))
  return {k: weight(k, tuple(s), fan_in(s)) for k, s in shapes.items()}


def inputs(name: str, sigma: np.ndarray, channels: int) -> np.ndarray:
  """Returns noisy images f32[3, SIZE, SIZE, channels] of unit data."""
  x = draw(f"x of {name}", (len(sigma), SIZE, SIZE, channels))
  return (x * np.hypot(1.0, sigma)[:, None, None, None]).astype(np.float32)


def conditions(kwargs: dict) -> dict[str, np.ndarray]:
  """Returns label f32[3, d], the last of them null, and augment f32[3, d]."""
  found = {}
  if kwargs.get("label_dim"):
    found["label"] = np.eye(3, kwargs["label_dim"], dtype=np.float32)
    found["label"][2] = 0.0
  if kwargs.get("augment_dim"):
    shape = (3, kwargs["augment_dim"])
    found["augment"] = draw("augment", shape).astype(np.float32)
  return found


def golden(name: str) -> tuple[dict, dict[str, tuple[int, ...]]]:
  """Returns (arrays, shapes of the weights) of a committed reference."""
  with np.load(GOLDEN / f"{name.replace('/', '-')}.npz") as held:
    arrays = dict(held)
  shapes = json.loads(str(arrays.pop("shapes")))
  return arrays, {k: tuple(v) for k, v in shapes.items()}


def save(name: str, shapes: dict, **arrays: np.ndarray) -> None:
  """Writes a reference to the folder `golden`."""
  text = json.dumps({k: list(v) for k, v in shapes.items()})
  path = GOLDEN / f"{name.replace('/', '-')}.npz"
  np.savez_compressed(path, shapes=text, **arrays)


def edm_network(checkouts: pathlib.Path, name: str):
  """Returns the authors' network of a case of `EDM`, in torch.

  Args:
    checkouts: folder with checkouts of NVIDIA's edm and edm2.
    name: of the case.
  """
  import torch

  cls, kwargs = EDM[name]
  new = name.startswith("edm2")
  modules = ("training", "torch_utils", "dnnlib")  # both have such packages
  for module in [m for m in sys.modules if m.partition(".")[0] in modules]:
    del sys.modules[module]
  sys.path.insert(0, str(checkouts / ("edm2" if new else "edm")))
  try:
    if new:
      from training import networks_edm2 as networks
    else:
      from training import networks
  finally:
    sys.path.pop(0)
  torch.manual_seed(0)
  net = getattr(networks, cls)(**kwargs).eval().requires_grad_(False)
  held = net.state_dict()
  shapes = {
    k: tuple(v.shape)
    for k, v in held.items()
    if not k.endswith(("resample_filter", ".u")) and k != "u"
  }
  for key, value in torch_weights(shapes).items():
    held[key].copy_(torch.from_numpy(value))
  return net, shapes


def edm_output(net, name: str) -> dict[str, np.ndarray]:
  """Returns sigma, D(x; sigma) and, for VP, the time of the network."""
  import torch

  cls, kwargs = EDM[name]
  sigma = torch.from_numpy(SIGMA)
  if cls == "iDDPMPrecond":
    sigma = net.u[net.M - 1 - torch.from_numpy(STEPS)]
  x = inputs(name, sigma.numpy(), kwargs["img_channels"])
  given = conditions(kwargs)
  label = torch.from_numpy(given["label"]) if "label" in given else None
  extra = {}
  if "augment" in given:
    extra["augment_labels"] = torch.from_numpy(given["augment"])
  out = net(torch.from_numpy(np.moveaxis(x, -1, 1)), sigma, label, **extra)
  found = dict(sigma=sigma.numpy(), x0=np.moveaxis(out.numpy(), 1, -1))
  if cls == "VPPrecond":
    found["t"] = net.sigma_inv(sigma).numpy()
  return found


def song_output(checkouts: pathlib.Path, name: str) -> None:
  """Writes eps of a configuration of score_sde, from its own JAX code.

  The code asks for versions of Flax and TensorFlow that are long gone, but for
  names alone; stand-ins of these names are enough. All is computed in float64.

  Args:
    checkouts: folder with a checkout of score_sde.
    name: of the configuration.
  """
  import flax
  import jax
  import jax.numpy as jnp
  import ml_collections

  jax.config.update("jax_enable_x64", True)
  flax.optim = types.SimpleNamespace(Optimizer=object)
  helpers = types.ModuleType("utils")
  helpers.batch_mul = jax.vmap(lambda a, b: a * b)
  models = types.ModuleType("models")
  models.__path__ = [str(checkouts / "score_sde" / "models")]
  sys.modules |= dict(utils=helpers, models=models)
  sys.path.insert(0, str(checkouts / "score_sde"))
  import sde_lib
  from models import ddpm
  from models import layers
  from models import ncsnpp
  from models import utils

  def embedding(steps, features):  # its own table of frequencies is float32
    half = features // 2
    w = 1e-4 ** (np.arange(half) / (half - 1))
    angle = steps[:, None] * w
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)

  layers.get_timestep_embedding = embedding
  width, other = SONG[name]
  config = ml_collections.ConfigDict()
  config.data = dict(centered=not name.startswith("ve"), image_size=SIZE)
  config.training = dict(continuous="continuous" in name)
  config.model = dict(
    name="ncsnpp", nf=width, ch_mult=(1, 1 if width > 16 else 2),
    num_res_blocks=1, attn_resolutions=(SIZE // 2,), dropout=0.1,
    sigma_min=0.01, sigma_max=378.0 if "bedroom" in name else 50.0,
    num_scales=1000, beta_min=0.1, beta_max=20.0, normalization="GroupNorm",
    nonlinearity="swish", resamp_with_conv=True, conditional=True, fir=False,
    fir_kernel=[1, 3, 3, 1], skip_rescale=True, resblock_type="biggan",
    progressive="none", progressive_input="none", progressive_combine="sum",
    init_scale=0.0, embedding_type="positional", fourier_scale=16,
    scale_by_sigma=False,
  )  # fmt: skip
  config.model.update(other)
  cls = ddpm.DDPM if config.model.name == "ddpm" else ncsnpp.NCSNpp
  model = cls(config=config)
  x = inputs(name, np.zeros(3), 3).astype(np.float64)
  fourier = config.model.embedding_type == "fourier"
  t = jnp.ones(3) if fourier else jnp.zeros(3, int)
  init = lambda key: model.init(dict(params=key), x, t, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0))["params"]
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  flat = {k: v.shape for k, v in flat.items()}
  params = flax.traverse_util.unflatten_dict(flax_weights(flat), sep="/")
  params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), params)
  continuous = config.training.continuous
  if name.startswith("ve"):
    sde = sde_lib.VESDE(0.01, config.model.sigma_max, 1000)
    x = 0.5 * x + 0.5  # its images are in [0, 1]
  else:
    cls = sde_lib.subVPSDE if name.startswith("subvp") else sde_lib.VPSDE
    sde = cls(0.1, 20.0, 1000)
  times = TIMES.astype(np.float64)
  if name.startswith("vp") and not continuous:
    times = STEPS / 999.0 + 1e-9  # it rounds downwards
  elif not continuous:  # whole steps, counted from the highest noise
    times = 1 - STEPS / 999.0
  std = sde.marginal_prob(jnp.ones_like(x), times)[1]
  if name.startswith("vp") and not continuous:
    std = sde.sqrt_1m_alphas_cumprod[STEPS]
  score = utils.get_score_fn(sde, model, params, {}, continuous=continuous)
  eps = -score(x, times) * np.asarray(std)[:, None, None, None]
  save(name, flat, t=times, eps=np.asarray(eps, np.float32))


def main() -> None:
  checkouts = pathlib.Path(sys.argv[1])
  for name in SONG:
    song_output(checkouts, name)
  for name in EDM:
    net, shapes = edm_network(checkouts, name)
    save(name, shapes, **edm_output(net, name))


if __name__ == "__main__":
  main()
