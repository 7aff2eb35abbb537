"""Learns the solver of a few calls for one target.

  python -m experiments.learn_solver                   # digits mixture, EDM
  python -m experiments.learn_solver --config.target=grid25 \
      --config.batch=1024 --config.rate=0.03 --config.steps=500

One to two minutes for each number of calls on two cores. Expect about a third
of the error of the best known table.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  return ml_collections.ConfigDict(
    dict(
      target="digits_mixture",  # an oracle, or the folder of a trained run
      data="",  # as in frontier_mixture; not looked at here
      process="edm",  # edm, vp, flow, cosine, ve, sub_vp
      to_zero=False,  # whether to end without noise, as flows do
      # bns (every number), ld3 (the grid), amed (two calls a step), epd
      # (three), dc_solver, dyweight, neural_solver
      method="bns",
      calls=(5, 6, 8, 10),
      solvers=(  # the start is the best of these, on the validation noises
        "ddim",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc(order=2)",
        "unipc(order=3)",
        "deis(order=2)",
        "deis(order=3)",
        "ipndm(order=2)",
        "ipndm(order=3)",
        "ipndm(order=4)",
        "angular_adams(order=3, corrector=False)",
        "angular_adams(order=2)",
        "angular_adams(order=4)",
      ),
      grids=("vp_quadratic", "karras", "cosine", "log_snr", "angular"),
      noises=16384,  # to learn on
      validation=4096,  # to choose by
      report=2048,  # to report on, for each of `report_seeds`
      report_seeds=(0, 1, 2, 3),
      teacher_calls=100,
      reference_calls=400,  # of the ODE that is reported against
      rounds=16,
      steps=150,
      batch=256,
      rate=0.2,
      damping=1e-3,
      robust=0.5,
      metric_batch=512,
      seconds=300.0,  # of learning, for each number of calls
      seed=0,
      float64=True,  # of the report; learning runs in float32
      out="runs/learn_solver",
      title="",
    )
  )
