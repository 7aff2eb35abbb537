"""Converted networks against the code they come from; damaged directories."""

import json
import math
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff import networks
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff.networks import embeddings
from jaxdiff.networks import positions
from jaxdiff.weights import diffusers
from jaxdiff.weights import diffusers_folder
from jaxdiff.weights import dit
from jaxdiff.weights import safetensors
from jaxdiff.weights import uvit
from tests.networks import vits_reference as reference

LINEAR = dict(
  _class_name="DDPMScheduler",
  beta_schedule="linear",
  beta_start=1e-4,
  beta_end=0.02,
  num_train_timesteps=1000,
)


@pytest.fixture(scope="module")
def golden():
  with np.load(reference.GOLDEN) as file:
    return dict(file)


def drawn(golden, case):
  """Returns the state dict of a case."""
  shapes = json.loads(str(golden[f"{case}/shapes"]))
  return reference.weights(shapes, case)


def directory(folder, case, monkeypatch, arrays, **changes):
  """Writes the directory of a case of diffusers, its arrays kept in memory."""
  kind, config = reference.DIFFUSERS[case]
  config = {"_class_name": kind} | config | changes
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "diffusion_pytorch_model.safetensors").touch()
  monkeypatch.setattr(safetensors, "read", lambda *_: dict(arrays))
  return folder


def rounded_fourier(c, features, low, high):
  """The features of torch's code, which rounds frequencies on the way."""
  half = features // 2
  above = (half - 1) * math.log(1e-4) / math.log(high / low)
  exponent = np.arange(half, dtype=np.float32) * -np.float32(math.log(1e4))
  exponent = (exponent / np.float32(round(above))).astype(np.float64)
  w = np.exp(exponent).astype(np.float32)
  angle = low * c[:, None] * w
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def output(model, params, given):
  """Returns the network's output in torch's layout."""
  config = dict(model.network_options) | dict(num_classes=model.num_classes)
  network = networks.make(model.network, **config)
  c, sign = given["step"].astype(np.float32), 1.0
  if model.process == "rectified_flow":
    c, sign = 1.0 - c, -1.0  # SiT's time and velocity run from noise to data
  elif model.process == "vp_linear":
    c = c / 999.0
  x = jnp.asarray(given["x"].transpose(0, 2, 3, 1))
  run = jax.jit(lambda params, *args: network.apply({"params": params}, *args))
  out = sign * np.asarray(run(params, x, c, given["label"]))
  return out.transpose(0, 3, 1, 2)


def load(case, arrays, folder, monkeypatch):
  if case in reference.DIFFUSERS:
    directory(folder, case, monkeypatch, arrays)
    loader = diffusers.load_dit if "dit" in case else diffusers.load_unet
    return loader(folder)
  if case in ("original_dit", "sit"):
    table = positions.waves(4, 4, 16).reshape(1, 16, 16)
    loader = dit.from_sit if case == "sit" else dit.from_dit
    return loader(arrays | {"pos_embed": table}, heads=2)
  return uvit.from_uvit(arrays, heads=2, null_label=False)


CASES = [
  "unet",
  "unet_adm",
  "dit",
  "dit_own",
  "original_dit",
  "sit",
  "uvit",
  "uvit_plain",
]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_reference(
  case, golden, tmp_path, monkeypatch
):
  # The frequencies of the time in float32, which we compute in float64, move
  # the outputs at step 999 by 2e-5: here they are rounded as in torch.
  monkeypatch.setattr(embeddings, "fourier", rounded_fourier)
  arrays = drawn(golden, case)
  model, params = load(case, arrays, tmp_path, monkeypatch)
  channels = model.shape[-1]
  given = reference.inputs(case, 8, channels, 4 * bool(model.num_classes))
  expected = golden[f"{case}/out"]
  assert np.abs(expected).max() > 0.3
  got = output(model, params, given)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_frequencies_are_those_of_torch_but_for_rounding():
  step = jnp.array([0.0, 1.0, 37.0, 500.0, 999.0])
  for last in (127 / 128, 1.0):
    ours = embeddings.fourier(step, 256, 1.0, 1e-4**last)
    theirs = rounded_fourier(step, 256, 1.0, 1e-4**last)
    error = np.abs(ours - theirs).max(1)
    assert (error <= 1e-6 + 2e-7 * np.asarray(step)).all()


def test_a_directory_tells_the_process(golden, tmp_path, monkeypatch):
  arrays = drawn(golden, "unet")
  folder = directory(tmp_path / "unet", "unet", monkeypatch, arrays)
  model, params = diffusers.load_unet(folder)
  denoiser = models.make_denoiser(model)
  assert jax.tree.structure(denoiser.params) == jax.tree.structure(params)
  assert model.prediction == "eps"
  assert model.shape == (8, 8, 3)
  betas = model.process_options["betas"]
  np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 1000))
  # a pipeline has the scheduler beside the network
  (tmp_path / "scheduler").mkdir()
  file = tmp_path / "scheduler" / "scheduler_config.json"
  old = {"trained_betas": [0.1, 0.2], "prediction_type": "sample"}
  for given, first, last, prediction in (
    ({}, 1e-4, 0.02, "eps"),
    ({"beta_schedule": "scaled_linear"}, 1e-4, 0.02, "eps"),
    ({"beta_schedule": "squaredcos_cap_v2"}, 4.128e-5, 0.999, "eps"),
    (old, 0.1, 0.2, "x0"),
    ({"prediction_type": "v_prediction"}, 1e-4, 0.02, "v"),
  ):
    file.write_text(json.dumps(LINEAR | given))
    for path in (tmp_path, folder):
      told = diffusers_folder.process_fields(path, folder, None, None)
      betas = told["process_options"]["betas"]
      np.testing.assert_allclose(
        [betas[0], betas[-1]], [first, last], rtol=1e-3
      )
      assert told["prediction"] == prediction
  short, _ = diffusers.load_unet(tmp_path, betas=[0.1, 0.2])
  assert short.process_options == {"betas": [0.1, 0.2]}
  denoiser = models.make_denoiser(short)
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  seen = jax.eval_shape(lambda model, x: model(x, 0.5), denoiser, x)
  assert isinstance(seen, predictions.Prediction)


def test_old_names_of_attention_are_known(golden, tmp_path, monkeypatch):
  arrays = drawn(golden, "unet")
  folder = directory(tmp_path, "unet", monkeypatch, arrays)
  _, params = diffusers.load_unet(folder)
  old = {"to_q": "query", "to_k": "key", "to_v": "value"}
  old["to_out.0"] = "proj_attn"
  renamed = {}
  for name, value in arrays.items():
    for new, former in old.items():
      name = name.replace(f".{new}.", f".{former}.")
    renamed[name] = value
  assert set(renamed) != set(arrays)
  directory(tmp_path, "unet", monkeypatch, renamed)
  again = diffusers.load_unet(folder)[1]
  chex.assert_trees_all_equal(params, again)


def without(name):
  return lambda arrays: {k: v for k, v in arrays.items() if k != name}


def changed(name, value):
  return lambda arrays: arrays | {name: value}


@pytest.mark.parametrize(
  ("case", "change", "message"),
  [
    (
      "unet",
      without("conv_in.weight"),
      "lacks 'conv_in.weight', which becomes",
    ),
    (
      "unet",
      changed("conv_in.bias", np.zeros(7)),
      r"becomes in/bias of shape \(7,\)",
    ),
    ("unet", changed("conv_in.bias", np.full(8, np.nan)), "are not finite"),
    ("unet", changed("add_embedding.bias", np.zeros(7)), "has no place for"),
    ("unet_adm", without("class_embedding.weight"), "lacks 'class_embedding"),
    ("dit", changed("proj_out_2.bias", np.zeros(7)), r"of shape \(7,\)"),
    (
      "original_dit",
      changed("final_layer.linear.bias", np.zeros(7)),
      "final_layer.linear.* becomes out/out/",
    ),
    (
      "dit",
      without("transformer_blocks.0.attn1.to_k.weight"),
      "lacks 'transformer_blocks.0.attn1.to_qkv.weight'",
    ),
  ],
)
def test_weights_that_do_not_fit_are_named(
  case, change, message, golden, tmp_path, monkeypatch
):
  arrays = change(drawn(golden, case))
  with pytest.raises(ValueError, match=message):
    load(case, arrays, tmp_path, monkeypatch)


@pytest.mark.parametrize(
  ("case", "changes", "message"),
  [
    ("unet", {"_class_name": "UNet2DConditionModel"}, "takes a UNet2DModel"),
    ("unet", {"time_embedding_type": "fourier"}, "'positional' would be"),
    ("unet", {"attn_norm_num_groups": 8}, "that of all norms, 4"),
    ("unet", {"out_channels": 4}, "3 channels in and 4 out"),
    ("unet", {"sample_size": None}, "sample_size = null"),
    ("unet", {"up_block_types": ["UpBlock2D"] * 2}, "at the same levels"),
    (
      "unet",
      {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]},
      "blocks SkipDownBlock2D",
    ),
    ("unet", {"upsample_type": "resnet"}, "in several ways"),
    ("dit", {"norm_type": "ada_norm_single"}, "'ada_norm_zero' would be"),
  ],
)
def test_variants_that_are_not_supported_are_named(
  case, changes, message, tmp_path, monkeypatch
):
  folder = directory(tmp_path, case, monkeypatch, {}, **changes)
  loader = diffusers.load_dit if "dit" in case else diffusers.load_unet
  with pytest.raises(ValueError, match=message):
    loader(folder)


@pytest.mark.parametrize(
  ("scheduler", "options", "message"),
  [
    ({"beta_schedule": "sigmoid"}, {}, "beta_schedule = 'sigmoid'"),
    ({"beta_schedule": None}, {}, "beta_schedule = None, of a DDPMScheduler"),
    ({"rescale_betas_zero_snr": True}, {}, "no signal is left"),
    (
      {"rescale_betas_zero_snr": True},
      {"prediction": "eps"},
      "where an eps network says nothing",
    ),
    ({"prediction_type": "flow_prediction"}, {}, "epsilon, sample"),
    ({}, {"prediction": "epsilon"}, "prediction must be one of 'x0', 'eps'"),
    ({}, {"betas": [0.1, 1.0]}, "every beta must be inside"),
  ],
)
def test_schedulers_that_are_not_supported_are_named(
  scheduler, options, message, golden, tmp_path, monkeypatch
):
  arrays = drawn(golden, "unet")
  folder = directory(tmp_path, "unet", monkeypatch, arrays)
  text = json.dumps(LINEAR | scheduler)
  (folder / "scheduler_config.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    diffusers.load_unet(folder, **options)


def test_a_schedule_rescaled_to_no_signal_is_read_for_v(
  golden, tmp_path, monkeypatch
):
  arrays = drawn(golden, "unet")
  folder = directory(tmp_path, "unet", monkeypatch, arrays)
  told = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
  (folder / "scheduler_config.json").write_text(json.dumps(LINEAR | told))
  config, _ = diffusers.load_unet(folder)
  betas = config.process_options["betas"]
  assert betas[-1] == 1.0 and config.prediction == "v"
  assert processes.vp_discrete(betas).alpha(1.0) == 0


def test_directories_that_are_incomplete_say_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no config.json"):
    diffusers.load_unet(tmp_path)
  (tmp_path / "config.json").write_text('{"_class_name": "UNet2DMo')
  with pytest.raises(ValueError, match="is not JSON"):
    diffusers.load_unet(tmp_path)
  _, config = reference.DIFFUSERS["unet"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "model.onnx").touch()
  with pytest.raises(FileNotFoundError, match="it holds config.json, model.on"):
    diffusers.load_unet(tmp_path)


def test_state_dicts_that_do_not_fit_are_named(golden):
  arrays = drawn(golden, "original_dit")
  table = positions.waves(4, 4, 16).reshape(1, 16, 16)
  with pytest.raises(ValueError, match="give heads="):
    dit.from_dit(arrays | {"pos_embed": table})
  with pytest.raises(ValueError, match="positions that were trained"):
    dit.from_dit(arrays | {"pos_embed": table + 0.1}, heads=2)
  with pytest.raises(ValueError, match="its innermost dict"):
    dit.from_dit({"model": np.zeros(3)})


def test_a_null_class_is_the_last_one_or_zeros(golden):
  arrays = drawn(golden, "uvit")
  model, params = uvit.from_uvit(arrays, heads=2, null_label=True)
  assert model.num_classes == 3
  np.testing.assert_array_equal(
    params["label"]["embedding"], arrays["label_emb.weight"]
  )
  model, params = uvit.from_uvit(arrays, heads=2, null_label=False)
  assert model.num_classes == 4
  np.testing.assert_array_equal(params["label"]["embedding"][4], 0.0)


def test_files_are_read_in_their_dtypes(tmp_path):
  numpy_front = pytest.importorskip("safetensors.numpy")
  arrays = {
    "a": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "b": np.ones(3, np.float16),
    "c": np.full((2, 1), 1.5, jnp.bfloat16),
  }
  path = tmp_path / "one.safetensors"
  numpy_front.save_file(arrays, path)
  got = safetensors.read(path)
  for name, value in arrays.items():
    assert got[name].dtype == value.dtype
    np.testing.assert_array_equal(got[name], value)
  numpy_front.save_file({"d": arrays["a"]}, tmp_path / "two.safetensors")
  index = tmp_path / "all.safetensors.index.json"
  both = {"a": "one.safetensors", "d": "two.safetensors"}
  index.write_text(json.dumps({"weight_map": both}))
  assert set(safetensors.read(index)) == {"a", "b", "c", "d"}
  index.write_text(json.dumps({"weight_map": both | {"e": "gone"}}))
  with pytest.raises(FileNotFoundError, match="gone"):
    safetensors.read(index)
  index.write_text("[]")
  with pytest.raises(ValueError, match="is no index"):
    safetensors.read(index)


def test_damaged_and_hostile_files_are_refused(tmp_path):
  numpy_front = pytest.importorskip("safetensors.numpy")
  path = tmp_path / "x.safetensors"
  numpy_front.save_file({"a": np.zeros(100, np.float32)}, path)
  whole = path.read_bytes()

  def header(**entry):
    fields = dict(dtype="F32", shape=[2], data_offsets=[0, 8]) | entry
    text = json.dumps({"a": fields}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)

  path.write_bytes(header())
  assert safetensors.read(path)["a"].shape == (2,)
  for content in (
    b"",
    whole[:4],
    whole[:40],
    whole[:-1],
    struct.pack("<Q", 2**60) + whole[8:],
    header(data_offsets=[0, 800]),
    header(data_offsets=[-8, 0]),
    header(shape=[2**40, 2**40]),
    header(dtype="F31"),
    b"version https://git-lfs.github.com/spec/v1",
  ):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no whole safetensors file"):
      safetensors.read(path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
  with pytest.raises(ImportError, match=r"jaxdiff\[weights\]"):
    safetensors.read(tmp_path / "x.safetensors")
