r"""Networks of Song et al. 2021 from the Flax checkpoints of score_sde.

A checkpoint is a msgpack of the whole training state; of it `params_ema` is
read. It holds no word of the architecture: the name of the configuration that
trained it, as in score_sde's folder `configs`, must be given, or be that of
the folders around the file ("vp/cifar10_ddpmpp_continuous/checkpoint_8").

| configs          | process                 | clock (`time`)                 |
|------------------|-------------------------|--------------------------------|
| vp, continuous   | vp_linear(0.1, 20)      | t, times 999 inside            |
| subvp            | sub_vp(0.1, 20)         | t, times 999 inside            |
| vp, discrete     | vp_discrete, 1000 steps | the step 0..999                |
| ve, continuous   | ve                      | log(sigma / 2)                 |
| ve, discrete     | ve                      | t, times 999 inside            |

All predict eps. Folded into the weights, exactly: (1) VE networks return -eps
(before they divide by sigma): the last layers change sign. (2) VE networks know
images in [0, 1] and double them less one at once; ours are in [-1, 1], so that
the noise levels are twice theirs: no change of the network. (3) Discrete VE
networks count from the highest noise, k = 999 (1 - t): sin(w k) and cos(w k)
are a rotation of sin(999 w t) and cos(999 w t), which the first layer takes up.

Reference: Song et al. (2021), https://arxiv.org/abs/2011.13456.
"""

import collections
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff.weights import fitting

_STEPS = 1000


def _config(
  size: int,
  network: str,
  process: str,
  *,
  continuous: bool = True,
  sigma_max: float = 50.0,
  **options: Any,
) -> models.ModelConfig:
  """Returns the model of a configuration; sigma_max is that of [0, 1]."""
  options = dict(dropout=0.1, augment_dim=0) | options
  if process == "ve":
    noise = dict(sigma_min=0.02, sigma_max=2 * sigma_max)
  else:
    noise = dict(beta_min=0.1, beta_max=20.0)
  fourier = options.get("embedding") == "fourier"
  time = "log_half_sigma" if fourier else "t"
  if process == "vp_linear" and not continuous:
    betas = np.linspace(0.1 / _STEPS, 20.0 / _STEPS, _STEPS)
    process, noise, time = "vp_discrete", dict(betas=betas.tolist()), "steps"
  if time == "t":
    options["time_scale"] = _STEPS - 1.0
  return models.ModelConfig(
    shape=(size, size, 3),
    network=network,
    network_options=options,
    process=process,
    process_options=noise,
    prediction="eps",
    time=time,
  )


def _configs() -> dict[str, models.ModelConfig]:
  """Returns the published configurations of DDPM, DDPM++ and NCSN++."""
  base = dict(channels=128, multipliers=(1, 2, 2, 2), attention=(16,))
  small = dict(base, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, dropout=0.0)
  fourier = dict(embedding="fourier", time_width=2)
  positional = dict(embedding="positional", time_width=1)
  found = {
    "vp/ddpm/cifar10": _config(
      32, "ddpm", "vp_linear", continuous=False, blocks=2, **base
    ),
    "vp/ddpm/cifar10_continuous": _config(
      32, "ddpm", "vp_linear", blocks=2, **base
    ),
    "ve/cifar10_ddpm": _config(
      32, "ddpm", "ve", continuous=False, blocks=2, **base
    ),
  }
  for data in ("bedroom", "celebahq", "church"):
    found[f"vp/ddpm/{data}"] = _config(
      256, "ddpm", "vp_linear", continuous=False, **small
    )
  for suffix, blocks in (("", 4), ("_continuous", 4), ("_deep_continuous", 8)):
    own = dict(base, blocks=blocks, continuous=bool(suffix))
    for sde, process in (("vp", "vp_linear"), ("subvp", "sub_vp")):
      if sde == "subvp" and not suffix:
        continue  # was never trained in discrete time
      found[f"{sde}/cifar10_ddpmpp{suffix}"] = _config(
        32, "ddpmpp", process, **own
      )
      found[f"{sde}/cifar10_ncsnpp{suffix}"] = _config(
        32, "ncsnpp", process, **own, **positional
      )
    clock = fourier if suffix else positional
    found[f"ve/cifar10_ncsnpp{suffix}"] = _config(
      32, "ncsnpp", "ve", **own, **clock
    )
  found["ve/celeba_ncsnpp"] = _config(
    64, "ncsnpp", "ve", continuous=False, sigma_max=90.0, blocks=4, **base,
    **positional,
  )  # fmt: skip
  skips = dict(fourier, encoder="skip", decoder="skip", dropout=0.0)
  large = dict(base, multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, **skips)
  highest = dict(
    bedroom=378.0, church=380.0, celebahq_256=348.0, ffhq_256=348.0
  )
  for data, sigma in highest.items():
    found[f"ve/{data}_ncsnpp_continuous"] = _config(
      256, "ncsnpp", "ve", sigma_max=float(sigma), **large
    )
  widths = (1, 2, 4, 8, 16, 32, 32, 32)
  huge = dict(large, channels=16, multipliers=widths, blocks=1)
  for data in ("celebahq", "ffhq"):
    found[f"ve/{data}_ncsnpp_continuous"] = _config(
      1024, "ncsnpp", "ve", sigma_max=1348.0, **huge
    )
  return found


CONFIGS = _configs()


@checks.door
def load(
  path: str | os.PathLike, config: str | models.ModelConfig | None = None
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns the model in a checkpoint of score_sde, and its parameters.

  Args:
    path: a file checkpoint_N.
    config: name of its configuration, one of `CONFIGS`, or the model itself
      where it was trained with another; None takes the names of the two or
      three folders around the file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no such checkpoint, the configuration is not known, or
      the weights do not fit it.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"there is no file {path}; a checkpoint of score_sde is one file, like"
      " .../vp/cifar10_ddpmpp_continuous/checkpoint_8"
    )
  if config is None:
    folders = path.absolute().parent.parts
    names = ["/".join(folders[-n:]) for n in (2, 3)]
    config = next((name for name in names if name in CONFIGS), names[0])
  if isinstance(config, str):
    if config not in CONFIGS:
      raise ValueError(
        f"{config!r} is no configuration of score_sde; give as config the one"
        f" that trained {path.name}: {', '.join(sorted(CONFIGS))}"
      )
    config = CONFIGS[config]
  try:
    state = flax.serialization.msgpack_restore(path.read_bytes())
  except Exception as e:  # whatever msgpack meets in a foreign file
    raise ValueError(
      f"{path} cannot be read as a checkpoint of Flax ({type(e).__name__}:"
      f" {e}); it is another kind of file, or was not copied to the end"
    ) from e
  if not isinstance(state, Mapping) or "params_ema" not in state:
    held = list(state) if isinstance(state, Mapping) else type(state).__name__
    raise ValueError(
      f"{path} is no training state of score_sde: it holds {held}, but no"
      " params_ema"
    )
  return config, convert(config, state["params_ema"])


@checks.door
def convert(
  config: models.ModelConfig, params_ema: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the parameters of a model from those of score_sde.

  Args:
    config: the model, as in `CONFIGS`.
    params_ema: nested dicts of arrays, named by Flax.

  Raises:
    ValueError: if they do not fit.
  """
  flat = flax.traverse_util.flatten_dict(dict(params_ema), sep="/")
  arrays = _join_attention({k: np.asarray(v) for k, v in flat.items()})
  names = _names(config)
  if config.process == "ve":
    for last in (v for k, v in names.items() if k.endswith("aux_conv")):
      for leaf in (f"{last}/kernel", f"{last}/bias"):
        if leaf in arrays:
          arrays[leaf] = -arrays[leaf]
    if config.time == "t" and "Dense_0/kernel" in arrays:
      arrays["Dense_0/kernel"] = _reverse_steps(arrays["Dense_0/kernel"])
  return fitting.fill(config, arrays, lambda path: _source(path, names))


def _names(config: models.ModelConfig) -> dict[str, str]:
  """Returns our modules' names as score_sde's: Flax numbers them as called."""
  options = config.network_options
  levels = len(options["multipliers"])
  naming = _Naming(
    collections.Counter(),
    {},
    config.network == "ddpm",
    [config.shape[0] >> k in options["attention"] for k in range(levels)],
  )
  names = naming.names
  names["freqs"] = "GaussianFourierProjection_0/W"
  names["map_layer0"] = _called(naming, "Dense")
  names["map_layer1"] = _called(naming, "Dense")
  names["enc0_conv"] = _called(naming, "Conv")
  _name_way_down(naming, options)
  _name_residual(naming, f"dec{levels - 1}_in0")
  _name_attention(naming, f"dec{levels - 1}_in0")
  _name_residual(naming, f"dec{levels - 1}_in1")
  _name_way_up(naming, options)
  return names


class _Naming(NamedTuple):
  """Names so far, in the order in which score_sde calls its modules.

  Attributes:
    counts: how often each class was called.
    names: ours to theirs; filled by the functions below.
    plain: whether it is DDPM, not NCSN++ or DDPM++.
    attention: for every level, whether it has attention.
  """

  counts: collections.Counter
  names: dict[str, str]
  plain: bool
  attention: list[bool]


def _called(naming, cls):
  """Returns the name of the next module of a class."""
  naming.counts[cls] += 1
  return f"{cls}_{naming.counts[cls] - 1}"


def _name_residual(naming, ours):
  plain = naming.plain
  theirs = _called(
    naming, "ResnetBlockDDPM" if plain else "ResnetBlockBigGANpp"
  )
  for mine, other in (
    ("norm0", "GroupNorm_0"),
    ("conv0", "Conv_0"),
    ("affine", "Dense_0"),
    ("norm1", "GroupNorm_1"),
    ("conv1", "Conv_1"),
    ("skip", "NIN_0" if plain else "Conv_2"),
  ):
    naming.names[f"{ours}/{mine}"] = f"{theirs}/{other}"


def _name_attention(naming, ours):
  theirs = _called(naming, "AttnBlock" if naming.plain else "AttnBlockpp")
  naming.names[f"{ours}/norm2"] = f"{theirs}/GroupNorm_0"
  naming.names[f"{ours}/qkv"] = f"{theirs}/qkv"
  naming.names[f"{ours}/proj"] = f"{theirs}/NIN_3"


def _name_way_down(naming, options):
  names, levels = naming.names, len(naming.attention)
  # the default of "ncsnpp"; the names of the others are asked for by no one
  encoder = options.get("encoder", "residual")
  for level in range(levels):
    for i in range(options["blocks"]):
      _name_residual(naming, f"enc{level}_block{i}")
      if naming.attention[level]:
        _name_attention(naming, f"enc{level}_block{i}")
    if level == levels - 1:
      break
    below = f"enc{level + 1}"
    if naming.plain:
      names[f"{below}_down"] = _called(naming, "Downsample") + "/Conv_0"
    else:
      _name_residual(naming, f"{below}_down")
    names[f"{below}_aux_skip"] = _called(naming, "Combine") + "/Conv_0"
    if encoder == "residual":
      pyramid = _called(naming, "Downsample")
      names[f"{below}_aux_residual"] = f"{pyramid}/Conv2d_0"


def _name_way_up(naming, options):
  names = naming.names
  for level in reversed(range(len(naming.attention))):
    for i in range(options["blocks"] + 1):
      _name_residual(naming, f"dec{level}_block{i}")
    if naming.attention[level]:
      _name_attention(naming, f"dec{level}_block{options['blocks']}")
    if options.get("decoder") == "skip" or not level:
      names[f"dec{level}_aux_norm"] = _called(naming, "GroupNorm")
      names[f"dec{level}_aux_conv"] = _called(naming, "Conv")
    if level and naming.plain:
      names[f"dec{level - 1}_up"] = _called(naming, "Upsample") + "/Conv_0"
    elif level:
      _name_residual(naming, f"dec{level - 1}_up")


def _source(
  path: tuple[str, ...], names: Mapping[str, str]
) -> tuple[str, Callable]:
  """Returns (name, layout) of a parameter: see `fitting.fill`."""
  if path == ("freqs",):
    return names["freqs"], fitting.same
  *modules, leaf = path
  theirs = names["/".join(modules)]
  last = theirs.rpartition("/")[2]
  if last.startswith("NIN") or last == "qkv":
    return f"{theirs}/{'b' if leaf == 'bias' else 'W'}", fitting.same
  if last.startswith("Conv2d") and leaf == "kernel":
    return f"{theirs}/weight", fitting.same
  return f"{theirs}/{leaf}", _pixelwise


def _pixelwise(value: np.ndarray) -> np.ndarray:
  """Returns a 1x1 convolution as a matrix, anything else as it is."""
  single = value.ndim == 4 and value.shape[:2] == (1, 1)
  return value[0, 0] if single else value


def _join_attention(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the arrays with the layers q, k, v of attention side by side."""
  joined = dict(arrays)
  for name in arrays:
    block, _, leaf = name.partition("/NIN_0/")
    if not leaf or "Attn" not in block:
      continue
    parts = [f"{block}/NIN_{i}/{leaf}" for i in range(3)]
    if all(part in joined for part in parts):
      values = [joined.pop(part) for part in parts]
      joined[f"{block}/qkv/{leaf}"] = np.concatenate(values, axis=-1)
  return joined


def _reverse_steps(kernel: np.ndarray) -> np.ndarray:
  """Returns the first layer for steps counted from the lowest noise.

  sin(w (s - k)) = sin(w s) cos(w k) - cos(w s) sin(w k), and likewise the
  cosine; rows are [sin, cos].
  """
  half = len(kernel) // 2
  w = 1e-4 ** (np.arange(half) / (half - 1))[:, None] * (_STEPS - 1)
  of_sin, of_cos = np.split(np.asarray(kernel, np.float64), 2)
  return np.concatenate(
    [
      np.sin(w) * of_cos - np.cos(w) * of_sin,
      np.sin(w) * of_sin + np.cos(w) * of_cos,
    ]
  )
