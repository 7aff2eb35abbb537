"""Converters against torch: real directories, random weights, whole pipelines.

Needs torch, diffusers and safetensors: `make parity`. The authors' own code of
DiT, SiT and U-ViT runs too if JAXDIFF_REFERENCES names a folder with checkouts
of these names (they need timm and einops); the golden arrays hold its outputs.
"""

import dataclasses
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import weights
from tests.networks import vits_reference as reference

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

REFERENCES = pathlib.Path(os.environ.get("JAXDIFF_REFERENCES", ""))
CHECKOUTS = ("DiT", "SiT", "U-ViT")


def denoiser(model, params):
  made = models.make_denoiser(model)
  return dataclasses.replace(made, params=jax.tree.map(jnp.asarray, params))


def to_jax(x):
  return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


def to_torch(x):
  return np.asarray(x).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("case", reference.DIFFUSERS)
def test_saved_directories_give_the_outputs_of_torch(case, tmp_path):
  module = reference.diffusers_model(case)
  module.save_pretrained(tmp_path)
  loader = (
    weights.diffusers.load_dit if "dit" in case else weights.diffusers.load_unet
  )
  model, params = loader(tmp_path)
  given = reference.inputs(case, 8, 3, 4 * bool(model.num_classes))
  # at 999 the rounding of torch's frequencies shows: 2e-5, see vits_test
  given["step"] = np.array([0, 3, 37, 250])
  expected = reference.evaluate(module, given)
  bare = denoiser(model, params)
  got = bare.apply(
    bare.params,
    to_jax(given["x"]),
    given["step"].astype(np.float32),
    given["label"],
  )
  np.testing.assert_allclose(to_torch(got), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_directories_keep_their_values(dtype, tmp_path):
  module = reference.diffusers_model("dit").to(getattr(torch, dtype))
  module.save_pretrained(tmp_path)
  _, params = weights.diffusers.load_dit(tmp_path)
  kernel = module.state_dict()["proj_out_1.weight"].float().numpy().T
  np.testing.assert_array_equal(params["out"]["modulate"]["kernel"], kernel)


def test_a_directory_in_parts_is_read_whole(tmp_path):
  module = reference.diffusers_model("unet")
  module.save_pretrained(tmp_path / "one")
  module.save_pretrained(tmp_path / "many", max_shard_size="20KB")
  assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
  _, one = weights.diffusers.load_unet(tmp_path / "one")
  _, many = weights.diffusers.load_unet(tmp_path / "many")
  chex.assert_trees_all_equal(one, many)


@pytest.mark.parametrize(
  "options",
  [
    dict(beta_schedule="linear"),
    dict(beta_schedule="scaled_linear", prediction_type="v_prediction"),
    dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
  ],
  ids=lambda options: options["beta_schedule"],
)
def test_ddim_draws_the_images_of_the_pipeline(options, tmp_path):
  steps = 8
  scheduler = diffusers.DDIMScheduler(
    clip_sample=False, timestep_spacing="trailing", **options
  )
  pipeline = diffusers.DDIMPipeline(
    reference.diffusers_model("unet"), scheduler
  )
  pipeline.save_pretrained(tmp_path)
  model, params = weights.diffusers.load_unet(tmp_path)
  made = denoiser(model, params)
  noise = reference.values("noise", (3, 3, 8, 8))
  scheduler.set_timesteps(steps)
  x = torch.from_numpy(noise)
  with torch.no_grad():
    for step in scheduler.timesteps:
      x = scheduler.step(pipeline.unet(x, step).sample, step, x).prev_sample
  # step i is at t = (i + 1) / N; the last step of diffusers ends at index 0's
  # alpha unless set_alpha_to_one, which is its default: no noise, t = 0
  grid = np.append((scheduler.timesteps.numpy() + 1.0) / 1000.0, 0.0)
  table = solvers.ddim(made.process, grid)
  got = sampling.sample(jax.random.key(0), made, table, to_jax(noise))
  size = np.abs(x.numpy()).max()
  error = np.abs(to_torch(got) - x.numpy()).max()
  assert error <= 2e-5 * max(size, 1.0), (error, size)


@pytest.mark.skipif(
  not all((REFERENCES / name).is_dir() for name in CHECKOUTS),
  reason="JAXDIFF_REFERENCES names no folder with DiT, SiT and U-ViT",
)
def test_golden_arrays_are_what_the_authors_code_returns():
  for needed in ("timm", "einops"):
    pytest.importorskip(needed)
  made = reference.originals(REFERENCES)
  with np.load(reference.GOLDEN) as golden:
    for case, (module, _, given) in made.items():
      out = reference.evaluate(module, given, positional=True)
      np.testing.assert_allclose(out, golden[f"{case}/out"], atol=1e-6)


def test_golden_arrays_are_what_diffusers_returns():
  with np.load(reference.GOLDEN) as golden:
    for case in reference.DIFFUSERS:
      module = reference.diffusers_model(case)
      given = reference.inputs(case, 8, 3, 0 if case == "unet" else 4)
      out = reference.evaluate(module, given)
      np.testing.assert_allclose(out, golden[f"{case}/out"], atol=1e-6)
