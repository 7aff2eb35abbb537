r"""DDO: direct discriminative optimisation by a likelihood ratio.

A likelihood model p, begun at a frozen reference p_ref, is its own
discriminator d = sigmoid(beta r) of data against the reference's samples:

  r(x) = log p(x) / p_ref(x),
  L = -E_data log d - alpha E_ref log(1 - d)
    = E_data softplus(-beta r) + alpha E_ref softplus(beta r).

For every x the best r is log(p_data / (alpha p_ref)) / beta, hence

  p* = p_ref^{1 - 1 / beta} p_data^{1 / beta} / Z,   alpha = Z^beta,

exactly so for this alpha: p_data itself for alpha = beta = 1, and beyond it,
away from the reference, for beta < 1. Near p_data a round multiplies the error
by 1 - 1 / beta: repeated, it converges for beta > 1 / 2 only.

For diffusion r is minus the difference of two denoising errors, a sum over the
values of a sample, at one (t, eps) that both models share; the mean over them
goes outside the logarithm by Jensen, to an upper bound. beta is to be chosen
with the dimension (0.05 for 3072 values; 5 for two).

At the reference sigmoid is 1/2, E_ref grad log p = 0, and the gradient is beta
/ 2 times that of maximum likelihood. If the reference is the data's law, the
curvature is the Fisher information times

  beta^2 (1 + alpha) / 4 - beta (alpha - 1) / 2:

`stable` says whether it is positive. The published (4, 0.05) is not: choosing
the best among the checkpoints of a round is part of the method, `rounds`.

Reference: Zheng et al. (2025), https://arxiv.org/abs/2503.01103.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import method as methods
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.processes import check_normal
from jaxdiff.types import Model
from jaxdiff.types import PyTree
from jaxdiff.types import Times

Ratio = Callable[[jax.Array, Any, Any, Mapping[str, Any]], jax.Array]


@checks.door
def ddo(
  reference: PyTree,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  alpha: float = 4.0,
  beta: float = 0.05,
  ratio: Ratio | None = None,
  times: Times | None = None,
  weighting: Any = "edm",
  clip: float = 50.0,
  ema: float = 0.99,
) -> Method:
  """Fine-tunes a denoiser by its likelihood ratio to a frozen reference.

  A batch holds "image", data, and "fake", samples of the reference.

  Networks are asked without dropout. Metrics are the mean "ratio_real" and
  "ratio_fake", and "unstable", 1 where `stable` is false.

  Args:
    reference: the model that made the fakes, frozen.
    student: a copy of it.
    optimizer: any optax transformation.
    alpha: weight of the fakes; 0.5 to 6, 10 to 100 for tokens.
    beta: scale of the ratio; 0.01 to 0.1 for images.
    ratio: (key, student, reference, batch) -> r f[batch]; by default
      `diffusion_ratio`, and `token_ratio` of logits for autoregressive models.
    times: times of the default ratio, a sampler of `losses.times`; by default
      EDM's.
    weighting: weighting of its errors, as in `losses.denoising`.
    clip: largest |beta r| that has a gradient.
    ema: decay of the student's average.

  Raises:
    ValueError: for alpha or beta that is not positive, a student with other
      parameters than the reference; in training for a batch without fakes like
      its data.
  """
  for name, value in (("alpha", alpha), ("beta", beta)):
    if not value > 0:
      raise ValueError(
        f"{name} must be positive, got {value}; alpha=1, beta=1 has the data as"
        " its optimum, images of 3072 values take alpha=4, beta=0.05"
      )
  checks.same_structure(
    student.params, reference.params, "the student", "its reference"
  )
  if ratio is None:
    check_normal(
      student.process,
      "the ratio of ddo",
      "takes the difference of denoising errors for log p / p_ref: they bound"
      " the likelihood under normal noise alone",
      "give ratio=, log p / p_ref of the two models",
    )
    ratio = diffusion_ratio(
      times or losses.times.log_normal(student.process), weighting
    )
  warning = 0.0 if stable(alpha, beta) else 1.0

  def loss(key, params, nets, batch):
    model, frozen = with_params(student, params), nets["reference"]
    keys = jax.random.split(key)
    real = ratio(keys[0], model, frozen, batch)
    fake = ratio(keys[1], model, frozen, _fakes(batch))
    said = dict(
      ratio_real=real.mean(), ratio_fake=fake.mean(), unstable=warning
    )
    return discriminator_loss(real, fake, alpha, beta, clip), said

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={"reference": reference},
    ema=ema,
  )


def _fakes(batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fakes of a batch as a batch."""
  fake, shape = batch.get("fake"), batch["image"].shape[1:]
  if fake is None or not len(fake) or fake.shape[1:] != shape:
    given = "none" if fake is None else f"shape {fake.shape}"
    raise ValueError(
      'batch["fake"] holds samples of the reference, one or more of shape'
      f" {shape} as the data, got {given}; draw a bank of them once for every"
      " round, with the sampler that the model is used with"
    )
  label = {"label": batch["fake_label"]} if "fake_label" in batch else {}
  return {"image": fake, **label}


def discriminator_loss(
  real: jax.Array,
  fake: jax.Array,
  alpha: float,
  beta: float,
  clip: float = 50.0,
) -> jax.Array:
  """Returns L of the log ratios of data and of the reference's samples, f[]."""
  real, fake = (jnp.clip(beta * r, -clip, clip) for r in (real, fake))
  push = jnp.mean(jax.nn.softplus(-real))
  return push + alpha * jnp.mean(jax.nn.softplus(fake))


def diffusion_ratio(times: Times, weighting: Any = "edm") -> Ratio:
  """Returns the estimate of r at one (t, eps) for every sample.

  With the weighting "edm" it is |F_ref - F|^2 - |F_model - F|^2 in the output
  of EDM's networks, whatever the models' own prediction is.

  Args:
    times: sampler of `losses.times`.
    weighting: weighting of the squared error in x0, as in `losses.denoising`.
  """

  def ratio(key, model, reference, batch):
    time_key, noise_key = jax.random.split(key)
    x0 = batch["image"]
    t = control.own_rows(lambda n: times(time_key, n), x0)
    x, eps = model.process.perturb(noise_key, x0, t, batch.get("index"))
    labels = generators.label(batch)

    def error(denoiser):
      answer = ask(denoiser, x, t, *labels)
      return losses.error(denoiser, answer, x0, eps, t, weighting)

    return tree.sample_size(x0) * (error(reference) - error(model))

  return ratio


def token_ratio(
  logits: jax.Array, reference_logits: jax.Array, tokens: jax.Array
) -> jax.Array:
  """Returns r of autoregressive models, summed over the tokens: f[batch].

  Args:
    logits: f[batch, length, vocabulary], of every token given those before.
    reference_logits: those of the reference.
    tokens: i32[batch, length].
  """
  change = jax.nn.log_softmax(logits) - jax.nn.log_softmax(reference_logits)
  own = jnp.take_along_axis(change, tokens[..., None], axis=-1)[..., 0]
  return own.sum(-1)


def stable(alpha: float, beta: float) -> bool:
  """Returns whether a perfect reference is a minimum of L; else a maximum."""
  return beta > 2.0 * (alpha - 1.0) / (alpha + 1.0)


def optimum(
  p_data: np.ndarray, p_ref: np.ndarray, beta: float
) -> tuple[np.ndarray, float]:
  """Returns (p*, alpha): the optimum f64[k] of categorical laws, and its alpha.

  Args:
    p_data: f64[k], positive.
    p_ref: f64[k], positive.
    beta: beta of the loss.
  """
  log_ref, log_data = np.log(p_ref), np.log(p_data)
  weight = np.exp(log_ref + (log_data - log_ref) / beta)
  return weight / weight.sum(), float(weight.sum() ** beta)


class Round(NamedTuple):
  """What a round of `rounds` found.

  Attributes:
    start: judgement of the model that it began with.
    scores: those of its checkpoints, in their order.
  """

  start: float
  scores: tuple[float, ...]


@checks.door
def rounds(
  key: jax.Array,
  model: Model,
  batches: Iterator[Mapping[str, Any]],
  *,
  draw: Callable[[jax.Array, Any], Mapping[str, Any]],
  judge: Callable[[Any], float],
  optimizer: optax.GradientTransformation,
  rounds: int = 4,
  steps: int = 1000,
  judgements: int = 4,
  **options: Any,
) -> tuple[Any, list[Round]]:
  """Returns the best model of several rounds, and what they found.

  A round draws a bank of fakes, trains from the model that made them, and ends
  with the best of its checkpoints, or with its start if none is better. One
  program serves all rounds.

  Args:
    key: PRNG key of all rounds.
    model: a trained model.
    batches: iterator of batches of data.
    draw: draw(key, model) -> {"fake": f[n, ...]}, with "fake_label" i[n] where
      there are labels, in equal parts.
    judge: judge(model) -> a number, lower is better, on data held out.
    optimizer: any optax transformation.
    rounds: how many.
    steps: updates of a round.
    judgements: checkpoints of a round.
    **options: options of `ddo`.
  """
  method = ddo(model, model, optimizer=optimizer, **options)
  update = methods.make_update(method)
  best, score, history = model, judge(model), []
  for i in range(rounds):
    draw_key, train_key, pick = jax.random.split(jax.random.fold_in(key, i), 3)
    bank = {k: np.asarray(v) for k, v in draw(draw_key, best).items()}
    # the arrays alone are new: the program stays
    frozen, _ = tree.partition({"reference": best})
    update = dataclasses.replace(update, frozen=frozen)
    method = dataclasses.replace(method, student=best)
    state = methods.init_state(train_key, method)
    pairs = _with_fakes(batches, bank, int(jax.random.bits(pick)))
    start, scores = score, []
    for j in range(judgements):
      state = training.train(
        state,
        update,
        pairs,
        steps=(j + 1) * steps // judgements,
        progress=False,
      )
      # a copy: the next updates take the state's memory
      candidate = jax.tree.map(jnp.copy, method.finished(state))
      scores.append(judge(candidate))
      if scores[-1] < score:
        best, score = candidate, scores[-1]
    history.append(Round(start, tuple(scores)))
  return best, history


def _with_fakes(batches, bank, seed):
  """Yields the batches, each with as many fakes of the bank."""
  rng = np.random.default_rng(seed)
  for batch in batches:
    size = len(batch["image"])
    pick = rng.integers(len(bank["fake"]), size=size)
    yield {**batch, **{name: rows[pick] for name, rows in bank.items()}}
