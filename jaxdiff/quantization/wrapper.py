r"""Quantized networks as models, in place of the denoiser.

`quantize` replaces the kernels of every Dense and Conv of a Flax Linen network
by int8, and what enters these layers by a grid fitted on a calibration set. It
finds the layers by intercepting calls (flax.linen.intercept_methods) and their
kernels by identity, so that it works for any network that calls such layers
somewhere inside (but not under nn.scan or nn.remat, where a kernel is no longer
the leaf of the parameters). Two ways to run:

  "float"    q(x) and q(w) are real numbers, the product is the float one
  "integer"  int8 x int8 -> int32, scaled afterwards: with n the integers,
             y = s_x s_w (sum_k n_x n_w - z_x sum_k n_w)

which agree to rounding. Sampler, normalization, time features and biases stay
float. The layer called first, the first that sees x, and the last keep 8 bits.
Networks that scale their input to unit variance (EDM) drift less with the noise
than a raw noise predictor.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import modules
from jaxdiff.quantization import quantizer
from jaxdiff.quantization.calibration import CalibrationSet
from jaxdiff.quantization.quantizer import Quantizer
from jaxdiff.quantization.rounding import learn_rounding
from jaxdiff.types import Model
from jaxdiff.types import PyTree

ARITHMETIC = ("float", "integer")
_LAYERS = (nn.Dense, nn.Conv)
_VALUES = 1 << 14  # of each layer's input, for the search of its range
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Config:
  """How a network is quantized.

  Attributes:
    w_bits: bits of the kernels, 2..16; 8 and fewer are held as int8.
    a_bits: bits of what enters a layer, 2..16; None leaves activations float.
    p: exponent of the error that chooses the ranges.
    candidates: thresholds tried on a line.
    edge_bits: bits of the first layers and the last; None treats them as the
      rest.
    skip: regular expressions of layer paths, as in "condition/", left float.
    arithmetic: "float" or "integer".
    rounding: "nearest", or "learned" for Dense layers of up to 8 bits.
  """

  w_bits: int = 8
  a_bits: int | None = 8
  p: float = 2.4
  candidates: int = 100
  edge_bits: int | None = 8
  skip: tuple[str, ...] = ()
  arithmetic: str = "float"
  rounding: str = "nearest"

  def __post_init__(self):
    checks.fields(self)
    checks.one_of(self.arithmetic, ARITHMETIC, "arithmetic")
    checks.one_of(self.rounding, ("nearest", "learned"), "rounding")
    for bits in (self.w_bits, self.a_bits, self.edge_bits):
      if bits is not None:
        quantizer.limits(bits, True)
    most = max(self.w_bits, self.a_bits or 99)
    if self.arithmetic == "integer" and most > 8:
      raise ValueError(
        "integer arithmetic multiplies int8 by int8 and needs w_bits and"
        f" a_bits of at most 8, got {self.w_bits} and {self.a_bits}"
      )


class Layer(NamedTuple):
  """What a quantized layer needs beside its integers; a pytree.

  Attributes:
    weight: grids of the output channels, f32[channels].
    input: grid of what enters, f32[]; None leaves it float.
  """

  weight: Quantizer
  input: Quantizer | None


@dataclasses.dataclass(frozen=True)
class QuantizedApply:
  """A network's apply with its Dense and Conv layers quantized; hashable.

  The parameters are {"params": the tree with int8 kernels, "layers": {path:
  Layer}}, as `quantize` makes them.
  """

  apply: Any
  arithmetic: str
  structure: Any  # of the float parameters

  def __call__(self, params: PyTree, *args: Any) -> jax.Array:
    inner, layers = params["params"], params["layers"]
    given = jax.tree.structure(inner)
    if given != self.structure:
      raise ValueError(
        "these parameters are not of the network that was quantized: expected"
        f" the tree {self.structure}, got {given}"
      )
    run = _integer_layer if self.arithmetic == "integer" else _float_layer

    def layer(module, name, x):
      # a layer left float goes on as it is
      return run(module, layers[name], x) if name in layers else None

    with _intercepting(inner, layer):
      return self.apply(inner, *args)


@checks.door
def quantize(
  denoiser: Model,
  calibration: CalibrationSet,
  config: Config | None = None,
  *,
  key: jax.Array | None = None,
) -> Any:
  """Returns the denoiser with a quantized network: a `Denoiser` as before.

  Args:
    denoiser: a `denoisers.Denoiser` of a Linen network, or of any function that
      calls Linen layers.
    calibration: inputs, of `calibration_set`. A conditional denoiser is shown
      them with its own label, a scalar; wrap it by with_label before.
    config: `Config()` by default.
    key: PRNG key, for learned rounding alone.

  Raises:
    ValueError: for learned rounding without a key, an empty or mismatched
      calibration set, a network without Dense or Conv layers, or a layer whose
      inputs are all zero.
  """
  config = Config() if config is None else config
  if config.rounding == "learned" and key is None:
    raise ValueError("learned rounding draws batches: give quantize a key=")
  modules.without_state(denoiser, "quantize")
  x, t = calibration
  if len(x) == 0 or jnp.shape(t) != (len(x),):
    raise ValueError(
      "a calibration set is x f[n, ...] and t f[n] with n > 0, got shapes"
      f" {jnp.shape(x)} and {jnp.shape(t)}"
    )
  seen = layer_inputs(denoiser, calibration)
  names, leaves, structure = _named(denoiser.params)
  edges = _edges(denoiser, x, t)
  layers, integers = {}, {}
  for path, values in seen.items():
    if any(re.search(pattern, path) for pattern in config.skip):
      continue
    if not np.any(values):
      raise ValueError(
        f"everything that enters the layer {path!r} is 0 on the calibration"
        " set, so its range is unknown; calibrate on inputs that reach it, or"
        f" leave it float with skip=({path!r},)"
      )
    leaf = names.index(path)
    kernel = leaves[leaf]
    bits = (config.w_bits, config.a_bits)
    if path in edges and config.edge_bits is not None:
      bits = tuple(None if b is None else config.edge_bits for b in bits)
    weight = quantizer.search_channels(
      kernel, bits[0], config.p, config.candidates
    )
    entering = None
    if bits[1] is not None:
      entering = quantizer.search_range(
        _thinned(values), bits[1], False, config.p, config.candidates
      )
    layers[path] = Layer(weight, entering)
    if config.rounding == "learned" and kernel.ndim == 2 and bits[0] <= 8:
      own = jax.random.fold_in(key, leaf)
      integers[leaf] = learn_rounding(own, values, kernel, weight, entering)
    else:
      integers[leaf] = _stored(kernel, weight, bits[0])
  leaves = [integers.get(i, leaf) for i, leaf in enumerate(leaves)]
  return dataclasses.replace(
    denoiser,
    params={"params": jax.tree.unflatten(structure, leaves), "layers": layers},
    apply=QuantizedApply(denoiser.apply, config.arithmetic, structure),
  )


@checks.door
def layer_inputs(
  denoiser: Model, calibration: CalibrationSet
) -> dict[str, np.ndarray]:
  """Returns what enters each layer, f32[rows, features], in order of calls.

  Args:
    denoiser: as of `quantize`.
    calibration: inputs.

  Raises:
    ValueError: if the network calls no Dense or Conv layer.
  """
  x, t = calibration
  seen: dict[str, list] = {}
  for i in range(0, len(x), _BATCH):
    part = _captured(denoiser, x[i : i + _BATCH], t[i : i + _BATCH])
    for name, values in part.items():
      seen.setdefault(name, []).append(values)
  if not seen:
    raise ValueError(
      "the network calls no flax.linen Dense or Conv layer: there is nothing"
      " to quantize (networks of other libraries are not intercepted)"
    )
  return {name: np.concatenate(parts) for name, parts in seen.items()}


def _thinned(values: np.ndarray) -> np.ndarray:
  """Returns _VALUES of them, evenly spread, both extremes included."""
  values = values.reshape(-1)
  at = np.linspace(0, values.size - 1, _VALUES - 2).astype(np.int64)
  return np.append(values[at], [values.min(), values.max()])


@checks.door
def size_in_bytes(params: PyTree) -> int:
  """Returns how much memory a tree of parameters takes."""
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
  )


# --- layers ------------------------------------------------------------------


def _named(params: PyTree) -> tuple[list[str], list, Any]:
  """Returns (names, leaves, structure); a kernel is named as its layer is."""
  paths, structure = jax.tree_util.tree_flatten_with_path(params)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  names = [name(path).removesuffix("/kernel") for path, _ in paths]
  return names, [leaf for _, leaf in paths], structure


def _intercepting(params: PyTree, layer: Callable) -> Any:
  """Returns the context in which layer(module, name, x) may replace a call.

  A layer is known by its kernel, which is one of the leaves of `params`; the
  copies that replace it have another. `layer` returns None to let the call go.
  """
  names, leaves, _ = _named(params)

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    if isinstance(module, _LAYERS) and context.method_name == "__call__":
      kernel = module.get_variable("params", "kernel")
      for name, leaf in zip(names, leaves):
        if leaf is kernel:
          out = layer(module, name, args[0])
          if out is not None:
            return out
    return next_fun(*args, **kwargs)

  return nn.intercept_methods(intercept)


def _float_layer(module, layer, x):
  """Runs a layer on real numbers that lie on the grids."""
  kernel = module.get_variable("params", "kernel")
  dtype = module.dtype or x.dtype
  if layer.input is not None:
    x = quantizer.fake_quant(x, layer.input)
  weight = (kernel.astype(jnp.float32) * layer.weight.scale).astype(dtype)
  return _again(module, weight, x)


def _integer_layer(module, layer, x):
  """Runs a layer on int8, by the product that its module lets one replace."""
  kernel = module.get_variable("params", "kernel")
  if layer.input is None or kernel.dtype != jnp.int8:
    return _float_layer(module, layer, x)
  grid = layer.input
  wide = dict(preferred_element_type=jnp.int32)

  def scaled(total, correction, dtype):
    whole = total.astype(jnp.float32) - correction
    return (grid.scale * layer.weight.scale * whole).astype(dtype)

  def integers(x):
    return quantizer.to_integers(x.astype(jnp.float32), grid).astype(jnp.int8)

  if isinstance(module, nn.Dense):

    def dot(lhs, rhs, dimensions, **options):
      del options
      total = jax.lax.dot_general(integers(lhs), kernel, dimensions, **wide)
      sums = jnp.sum(kernel, axis=0, dtype=jnp.int32).astype(jnp.float32)
      return scaled(total, grid.zero * sums, lhs.dtype)

    return _again(module, jnp.zeros_like(kernel), x, dot_general=dot)

  def convolve(lhs, rhs, strides, padding, **options):
    options.pop("precision", None)
    # what is padded must mean 0, and 0 is the integer z: pad by hand
    dims = jax.lax.conv_dimension_numbers(
      lhs.shape, rhs.shape, options["dimension_numbers"]
    )
    n = integers(lhs)
    if isinstance(padding, str):
      spatial = lambda shape, spec: [shape[i] for i in spec[2:]]
      dilation = options.get("rhs_dilation") or (1,) * (lhs.ndim - 2)
      window = [
        (k - 1) * r + 1
        for k, r in zip(spatial(rhs.shape, dims.rhs_spec), dilation)
      ]
      padding = jax.lax.padtype_to_pads(
        spatial(lhs.shape, dims.lhs_spec), window, strides, padding
      )
    widths = [(0, 0, 0)] * lhs.ndim
    for axis, (before, after) in zip(dims.lhs_spec[2:], padding):
      widths[axis] = (before, after, 0)
    n = jax.lax.pad(n, grid.zero.astype(jnp.int8), widths)
    total = jax.lax.conv_general_dilated(
      n, kernel, strides, "VALID", **options, **wide
    )
    sums = jnp.sum(
      kernel, axis=tuple(range(kernel.ndim - 1)), dtype=jnp.int32
    ).astype(jnp.float32)
    return scaled(total, grid.zero * sums, lhs.dtype)

  return _again(
    module, jnp.zeros_like(kernel), x, conv_general_dilated=convolve
  )


def _again(module, kernel, x, **replaced):
  """Calls a copy of the layer with another kernel."""
  copy = module.clone(parent=None, name=None, **replaced)
  variables = {"kernel": kernel}
  if module.use_bias:
    variables["bias"] = module.get_variable("params", "bias")
  return copy.apply({"params": variables}, x)


# --- what the network does ---------------------------------------------------


def _captured(denoiser: Model, x: jax.Array, t: jax.Array) -> dict:
  """Returns {name: what enters it, f32[rows, features]}, in order of calls."""
  seen = jax.device_get(_capture(denoiser, x, t))
  return {name.partition(" ")[2]: values for name, values in seen.items()}


@jax.jit
def _capture(denoiser, x, t):
  """As `_captured`; a jitted function sorts its dict, hence the numbers."""
  seen: dict[str, list] = {}

  def note(module, name, values):
    del module
    rows = values.astype(jnp.float32).reshape(-1, values.shape[-1])
    seen.setdefault(name, []).append(rows)

  with _intercepting(denoiser.params, note):
    denoiser(x, t)
  return {
    f"{i:06d} {name}": jnp.concatenate(values)
    for i, (name, values) in enumerate(seen.items())
  }


def _edges(denoiser: Model, x: jax.Array, t: jax.Array) -> set[str]:
  """Returns the first layer, the first that sees x, and the last."""
  x, t = x[:_BATCH], t[:_BATCH]
  one, other = _captured(denoiser, x, t), _captured(denoiser, 2.0 * x + 1.0, t)
  order = list(one)
  sees = [name for name in order if np.any(one[name] != other[name])]
  return {order[0], order[-1], *sees[:1]}


def _stored(kernel: jax.Array, grid: Quantizer, bits: int) -> jax.Array:
  """Returns the integers of a kernel, in the narrowest type that holds them."""
  integers = quantizer.to_integers(kernel.astype(jnp.float32), grid)
  return integers.astype(jnp.int8 if bits <= 8 else jnp.int16)
