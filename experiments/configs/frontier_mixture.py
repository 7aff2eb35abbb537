"""The frontier on the 64-dimensional mixture of digits, where truth is known.

  python -m experiments.frontier \
      --config=experiments/configs/frontier_mixture.py

About 80 seconds on two cores. Expect as the best rmse / its solver:
0.070 at 5 calls / ipndm(order=3), 0.017 at 10 / ipndm(order=4), 0.0044 at 20 /
unipc(order=3).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  return ml_collections.ConfigDict(
    dict(
      target="digits_mixture",  # an oracle, zoo:NAME, or the folder of a run
      data="",  # for the distance of a trained run's samples; "": the run's own
      process="edm",  # edm, vp, flow, cosine, ve, sub_vp
      solvers=(
        "ddim",
        "heun",
        "midpoint",
        "rk4",
        "dpm_solver(order=2)",
        "dpm_solver(order=3)",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc(order=2)",
        "unipc(order=3)",
        "deis(order=3)",
        "deis(order=4)",
        "ipndm(order=3)",
        "ipndm(order=4)",
        "ddpm",
        "heun_churn",
      ),
      grids=("vp_quadratic", "karras"),
      to_zero=False,  # whether the last step ends at sigma = 0, not at t_min
      calls=(3, 4, 5, 6, 8, 10, 15, 20, 30),
      choose_calls=(),  # of the solver "choose"; () is all of `calls`
      noises=2048,
      reference_steps=400,  # of RK4; its own error is 1e-6
      seed=0,
      float64=True,
      out="runs/frontier_mixture",
      title="64-dimensional mixture of digits, EDM noise",
    )
  )
