r"""Trains the classifier behind FD-digits and writes its weights (4 s).

  python -m experiments.pages.digits_features

It should reach 98.9 % on the 360 digits that it does not see.
"""

import jax
import numpy as np
from absl import flags

from jaxdiff import data
from jaxdiff.metrics.features import digits

from ..parts import console

FLAGS = flags.FLAGS
TEST = 360


def split() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns the digits that the classifier learns from and the others."""
  source = data.load("digits")
  order = np.argsort(np.random.Philox(0).random_raw(len(source["label"])))
  part = lambda chosen: {name: v[chosen] for name, v in source.items()}
  return part(order[TEST:]), part(order[:TEST])


def accuracy(params: dict, held: dict[str, np.ndarray]) -> float:
  """Returns the share of images that are given their label."""
  apply = jax.jit(digits.DigitsClassifier().apply)
  _, logits = apply({"params": params}, held["image"])
  return float(np.mean(np.argmax(logits, axis=-1) == held["label"]))


def main() -> None:
  if FLAGS.out == str(digits.WEIGHTS):
    console.checkout("the weights of FD-digits")
  learn, test = split()
  params = digits.train(
    jax.random.key(FLAGS.seed), learn["image"], learn["label"]
  )
  digits.save(params, FLAGS.out)
  print(
    f"Wrote {FLAGS.out}: accuracy {accuracy(params, learn):.2%} on the"
    f" {len(learn['label'])} digits learnt from,"
    f" {accuracy(params, test):.2%} on the {TEST} others."
  )


if __name__ == "__main__":
  console.define_seed("Seed of the params and the batches.")
  flags.DEFINE_string("out", str(digits.WEIGHTS), "File to write.")
  console.run(main)
