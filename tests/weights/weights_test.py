"""Converters: the numbers of the authors' own code, and what is refused."""

import dataclasses
import json

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff import weights
from jaxdiff.weights import diffusers_folder
from tests.networks import reference_networks as reference


def converted(name):
  """Returns (golden arrays, model) of a case of `reference.EDM`."""
  golden, shapes = reference.golden(name)
  cls, kwargs = reference.EDM[name]
  arrays = reference.torch_weights(shapes)
  if cls == "Precond":
    config, params = weights.edm2.convert(kwargs, arrays)
  else:
    config, params = weights.edm.convert(cls, kwargs, arrays)
  model = models.make_denoiser(config)
  return golden, dataclasses.replace(model, params=params)


def denoised(model, golden, name):
  """Returns D(x; sigma) as the model has it, f32[3, ...]."""
  cls, kwargs = reference.EDM[name]
  x = reference.inputs(name, golden["sigma"], kwargs["img_channels"])
  t = golden.get("t", golden["sigma"])
  if cls == "VEPrecond":
    t = model.process.log_snr_inverse(-np.log(t.astype(np.float64)))
  elif cls == "iDDPMPrecond":
    t = (reference.STEPS + 1) / 1000
  alpha = model.process.alpha(np.asarray(t, np.float64))[:, None, None, None]
  given = reference.conditions(kwargs)
  run = jax.jit(lambda model, *args: model(*args, **given).x0)
  x = jnp.asarray(alpha * x, jnp.float32)
  return run(model, x, jnp.asarray(t, jnp.float32))


@pytest.mark.parametrize(
  "name",
  [
    "edm",
    "edm2",
    pytest.param("ve", marks=pytest.mark.slow),
    pytest.param("vp", marks=pytest.mark.slow),
    pytest.param("adm", marks=pytest.mark.slow),
    pytest.param("skip", marks=pytest.mark.slow),
    pytest.param("iddpm", marks=pytest.mark.slow),
    pytest.param("edm2_uncond", marks=pytest.mark.slow),
  ],
)
def test_converted_networks_denoise_as_the_authors_code(name):
  golden, model = converted(name)
  error = np.abs(denoised(model, golden, name) - golden["x0"])
  # x0 = x + sigma F is as large as x, and rounded as x is
  size = np.abs(golden["x0"]).max(axis=(1, 2, 3))
  assert (error.max(axis=(1, 2, 3)) <= 1e-5 * np.maximum(1, size)).all()


def song_config(name):
  """Returns a configuration of score_sde at the reference's width."""
  config = weights.score_sde.CONFIGS[name]
  width = reference.SONG[name][0]
  small = dict(
    channels=width,
    multipliers=(1, 1 if width > 16 else 2),
    blocks=1,
    attention=(reference.SIZE // 2,),
  )
  return dataclasses.replace(
    config,
    shape=(reference.SIZE, reference.SIZE, 3),
    network_options=config.network_options | small,
  )


@pytest.mark.parametrize(
  "name",
  [
    "ve/cifar10_ncsnpp",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in reference.SONG
      if name != "ve/cifar10_ncsnpp"
    ),
  ],
)
def test_score_sde_networks_predict_as_their_own_code(name, tmp_path, x64):
  # in float64, for the clock of these networks turns by up to 1,000 radians,
  # and float32 rounds that to 1e-4
  golden, shapes = reference.golden(name)
  arrays = reference.flax_weights(shapes)
  nested = flax.traverse_util.unflatten_dict(arrays, sep="/")
  state = dict(step=1, lr=2e-4, optimizer=dict(target=nested))
  path = tmp_path / "checkpoint_1"
  state |= dict(params_ema=nested, model_state={}, rng=np.zeros(2, np.uint32))
  path.write_bytes(flax.serialization.msgpack_serialize(state))
  config, params = weights.score_sde.load(path, song_config(name))
  model = dataclasses.replace(models.make_denoiser(config), params=params)
  x = reference.inputs(name, np.zeros(3), 3).astype(np.float64)
  t = golden["t"].astype(np.float64)
  if config.process == "vp_discrete":
    t = (reference.STEPS + 1) / 1000
  run = jax.jit(lambda model, x, t: model(x, t).eps)
  error = np.abs(run(model, jnp.asarray(x), jnp.asarray(t)) - golden["eps"])
  assert error.max() <= 1e-6


def test_weights_that_do_not_fit_are_named():
  _, shapes = reference.golden("edm")
  cls, kwargs = reference.EDM["edm"]
  arrays = reference.torch_weights(shapes)
  name = "model.enc.4x4_down.conv0.weight"
  lacking = {k: v for k, v in arrays.items() if k != name}
  with pytest.raises(ValueError, match=f"weights lack '{name}'"):
    weights.edm.convert(cls, kwargs, lacking)
  wrong = arrays | {name: np.zeros((16, 16, 1, 1), np.float32)}
  with pytest.raises(ValueError, match=r"has shape \(16, 16, 1, 1\)"):
    weights.edm.convert(cls, kwargs, wrong)
  more = arrays | {"model.other.weight": np.zeros(1)}
  with pytest.raises(ValueError, match="does not use: .'model.other.weight'"):
    weights.edm.convert(cls, kwargs, more)
  spoilt = arrays | {name: np.full(shapes[name], np.nan, np.float32)}
  with pytest.raises(ValueError, match="not finite"):
    weights.edm.convert(cls, kwargs, spoilt)
  with pytest.raises(ValueError, match="made with novelty"):
    weights.edm.convert(cls, kwargs | dict(novelty=1), arrays)
  with pytest.raises(ValueError, match="are None and 3"):
    weights.edm.convert(cls, kwargs | dict(img_resolution=None), arrays)
  with pytest.raises(ValueError, match="made with dropout = {}"):
    weights.edm.convert(cls, kwargs | dict(dropout={}), arrays)
  with pytest.raises(ValueError, match="is a GAN; only SongUNet"):
    weights.edm.convert(cls, kwargs | dict(model_type="GAN"), arrays)


def test_the_improved_cosine_schedule_is_capped_and_ends_in_noise():
  betas = weights.edm.cosine_betas()
  assert betas.shape == (1000,)
  assert (betas > 0).all() and betas.max() == 0.999
  assert (np.diff(betas) >= 0).all()
  signal = np.prod(1 - betas[:500])
  expected = np.cos(np.pi / 2 * (0.5 + 0.008) / 1.008) ** 2
  assert signal == pytest.approx(
    expected / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2, rel=1e-6
  )


def test_score_sde_needs_a_known_configuration(tmp_path):
  path = tmp_path / "vp" / "cifar10_novel" / "checkpoint_3"
  path.parent.mkdir(parents=True)
  path.write_bytes(flax.serialization.msgpack_serialize(dict(step=1)))
  with pytest.raises(ValueError, match="'vp/cifar10_novel' is no config"):
    weights.score_sde.load(path)
  with pytest.raises(ValueError, match="holds .'step'., but no params_ema"):
    weights.score_sde.load(path, "vp/cifar10_ddpmpp")
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
    weights.score_sde.load(path, "vp/cifar10_ddpmpp")
  with pytest.raises(FileNotFoundError, match="is one file"):
    weights.score_sde.load(path.parent)


def shards(folder, stem, index, value, kind="safetensors"):
  """Writes two arrays as diffusers writes the shards of large weights."""
  where = {}
  for i, name in enumerate(("a.weight", "b.weight"), 1):
    where[name] = f"{stem}-0000{i}-of-00002.{kind}"
    array = np.full((2, i), value, np.float16)
    if kind == "bin":  # as good as torch's for who only finds the files
      with open(folder / where[name], "wb") as file:
        np.savez(file, **{name: array})
    else:
      safetensors = pytest.importorskip("safetensors.numpy")
      safetensors.save_file({name: array}, folder / where[name])
  text = json.dumps({"metadata": {}, "weight_map": where})
  (folder / index).write_text(text)


@pytest.mark.parametrize(
  ("stem", "index"),
  [
    ("", ".{}.index.json"),
    (".fp16", ".{}.index.fp16.json"),
    (".non_ema", ".{}.index.non_ema.json"),
    (".bf16", ".{}.bf16.index.json"),
    (".fp16", ".fp16.{}.index.json"),
  ],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_any_variant_are_read(
  tmp_path, stem, index, kind, monkeypatch
):
  monkeypatch.setattr(
    diffusers_folder.pickles, "state_dict", lambda path: dict(np.load(path))
  )
  name = "diffusion_pytorch_model"
  shards(tmp_path, name + stem, name + index.format(kind), 2.0, kind)
  found = diffusers_folder.read_arrays(tmp_path)
  assert {k: v.shape for k, v in found.items()} == {
    "a.weight": (2, 1),
    "b.weight": (2, 2),
  }
  assert all((v == 2.0).all() for v in found.values())


def test_of_several_sets_the_averaged_ones_without_a_variant_come_first(
  tmp_path,
):
  name, index = "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors"
  order = [".non_ema", ".fp16", ".bf16", ""]
  for value, variant in enumerate(order):
    end = f"{index}.index{variant}.json"
    shards(tmp_path, name + variant, end, float(value))
    found = diffusers_folder.read_arrays(tmp_path)
    assert found["a.weight"][0, 0] == value  # each comes before the last
  (tmp_path / f"{name}-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="00002-of-00002"):
    diffusers_folder.read_arrays(tmp_path)
