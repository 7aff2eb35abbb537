"""The script that measures samples against data."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import evaluate
from experiments.parts import measures
from jaxdiff import data
from jaxdiff import metrics
from jaxdiff.metrics import features
from tests import ROOT

CHOSEN = ["fd", "kid", "recall", "modes"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An evaluation of 200 noisy digits; its folder and what it returned."""
  folder = tmp_path_factory.mktemp("run")
  rng = np.random.default_rng(0)
  image = data.digits()["image"][:200]
  image = image + 0.2 * rng.standard_normal(image.shape).astype(np.float32)
  np.savez(folder / "samples.npz", image=image)
  result = evaluate.evaluate(
    str(folder), "digits", name="digits", chosen=CHOSEN, num=300
  )
  return folder, result


def test_its_numbers_are_those_of_the_functions(run):
  folder, result = run
  network = features.load("digits")
  with np.load(folder / "samples.npz") as f:
    x, logits = features.extract(network, f["image"])
  y, _ = features.extract(
    network, data.digits()["image"][measures.spread(1797, 300)]
  )
  found = result["metrics"]
  assert list(found) == [
    "FD-digits",
    "KD-digits",
    "recall",
    "classes found",
    "KL of classes",
    "share confident",
  ]
  fd = found["FD-digits"]
  np.testing.assert_allclose(
    fd["value"], metrics.frechet_of_samples(x, y), 1e-5
  )
  assert fd["low"] < fd["value"] < fd["high"]
  assert 0 < fd["bias"] < fd["value"]
  np.testing.assert_allclose(
    found["KD-digits"]["value"], metrics.mmd(x, y).value, 1e-4
  )
  np.testing.assert_allclose(
    found["recall"]["value"], metrics.precision_recall(x, y).recall
  )
  assert found["classes found"]["value"] == 10
  assert result["samples"]["count"] == 200 and result["half"] == 150


def test_it_leaves_a_file_a_picture_and_statistics_that_serve_again(run):
  folder, result = run
  out = folder / "evaluation-digits"
  assert json.loads((out / "metrics.json").read_text()) == result
  assert (out / "neighbours.png").read_bytes()[:4] == b"\x89PNG"
  (statistics,) = (p for p in out.glob("reference-*") if len(p.stem) == 29)
  again = evaluate.evaluate(
    str(folder / "samples.npz"), str(statistics), name="digits", out=str(out)
  )
  value = again["metrics"]["FD-digits"]["value"]
  np.testing.assert_allclose(
    value, result["metrics"]["FD-digits"]["value"], rtol=1e-6
  )
  assert again["reference"]["count"] == 300
  with pytest.raises(ValueError, match="--metrics=fd alone, not for kid"):
    evaluate.evaluate(
      str(folder), str(statistics), name="digits", chosen=["kid"]
    )
  with pytest.raises(ValueError, match="cannot be compared with 'pixels'"):
    evaluate.evaluate(str(folder), str(statistics), name="pixels")


def test_features_of_the_reference_are_kept(run, monkeypatch):
  folder, result = run
  read = []
  extract = evaluate.extract

  def counting(*arguments):
    read.append(arguments[-1])
    return extract(*arguments)

  monkeypatch.setattr(evaluate, "extract", counting)
  flags = dict(name="digits", chosen=["kid"])
  again = evaluate.evaluate(str(folder), "digits", num=300, **flags)
  assert read == ["samples"]
  assert again["metrics"]["KD-digits"] == result["metrics"]["KD-digits"]
  evaluate.evaluate(str(folder), "digits", num=250, **flags)
  assert read == ["samples", "samples", "reference"]


def test_a_class_that_the_reference_lacks_is_not_infinitely_far():
  rng = np.random.default_rng(0)
  values = rng.standard_normal((40, 3))
  x = measures.Features(values, np.eye(4)[np.arange(40) % 4])
  y = measures.Features(values, np.eye(4)[np.arange(40) % 3])
  (row,) = (
    row
    for row in measures.measure(["modes"], x, y, {})[0]
    if row.name == "classes_kl"
  )
  shares = np.array([14.5, 13.5, 13.5, 0.5]) / 42
  expected = np.sum(0.25 * np.log(0.25 / shares))
  np.testing.assert_allclose(row.interval.value, expected)
  assert np.isfinite([row.interval.low, row.interval.high]).all()


def test_remarks_say_when_a_covariance_is_not_of_full_rank():
  said = evaluate.remarks(50, 500, 64, 250)
  assert len(said) == 1
  assert "50 samples are too few for a covariance of 64 features" in said[0]
  assert "rank is 49" in said[0] and "at least 128" in said[0]
  assert not evaluate.remarks(200, 500, 64, 250)
  assert "larger than at equal sizes" in evaluate.remarks(300, 500, 64, 250)[0]
  assert "10000 of either set" in evaluate.remarks(20_000, None, 64, None)[0]


@pytest.mark.parametrize(
  ("flags", "error", "message"),
  [
    (dict(samples="none"), FileNotFoundError, "no folder with shard-"),
    (dict(chosen=["fid"]), ValueError, "got 'fid', expected some of fd,kid"),
    (dict(name="pixels", chosen=["is"]), ValueError, "'is' needs a classifier"),
    (dict(reference="none.npz"), FileNotFoundError, "no statistics at"),
    (dict(reference="mars"), ValueError, "got 'mars', expected one of"),
    (dict(name="vgg"), ValueError, "got 'vgg', expected one of inception"),
  ],
)
def test_mistakes_are_named_before_anything_is_computed(
  run, tmp_path, flags, error, message
):
  flags = {"samples": str(run[0]), "reference": "digits", **flags}
  flags = {"name": "digits", "out": str(tmp_path / "out"), **flags}
  with pytest.raises(error, match=message):
    evaluate.evaluate(**flags)
  assert not (tmp_path / "out").exists()


def test_a_sample_with_nan_is_named_by_its_number_in_the_file(tmp_path):
  image = np.zeros((40, 8, 8, 1), np.float32)
  image[30, 0, 0] = np.nan
  np.savez(tmp_path / "samples.npz", image=image)
  with pytest.raises(ValueError, match="number 30"):
    evaluate.evaluate(str(tmp_path), "digits", name="pixels", num=20)
  np.savez(tmp_path / "samples.npz", image=image[:0])
  with pytest.raises(ValueError, match="there are no images"):
    evaluate.evaluate(str(tmp_path), "digits", name="pixels")
  np.savez(tmp_path / "samples.npz", image=image[:20, :4])
  with pytest.raises(ValueError, match=r"\(32,\) cannot be compared.*\(64,\)"):
    evaluate.evaluate(
      str(tmp_path), "digits", name="pixels", num=20, chosen=["kid"]
    )


def test_too_few_samples_for_an_interval_are_refused(tmp_path):
  image = np.random.default_rng(0).normal(size=(12, 8, 8, 1))
  np.savez(tmp_path / "samples.npz", image=image[:2].astype(np.float32))
  with pytest.raises(
    ValueError, match=r"2 samples of .* are too few.* need 12"
  ):
    evaluate.evaluate(str(tmp_path), "digits", name="pixels")
  np.savez(tmp_path / "samples.npz", image=image.astype(np.float32))
  with pytest.raises(ValueError, match="11 samples of .* are too few"):
    evaluate.evaluate(str(tmp_path), "digits", name="pixels", num=11)
  done = evaluate.evaluate(str(tmp_path), "digits", name="pixels", num=12)
  numbers = [v["value"] for v in done["metrics"].values()]
  assert len(numbers) > 4 and np.isfinite(numbers).all()


@pytest.mark.slow
def test_the_script_ends_in_a_line_that_says_what_is_wrong(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.evaluate",
      f"--samples={tmp_path}",
      "--reference=digits",
      "--features=digits",
    ],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith("error: samples: ")
