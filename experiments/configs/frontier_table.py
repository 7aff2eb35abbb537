"""What `experiments.pages.frontier_table` measures: see there."""

import ml_collections

from jaxdiff.experiments.configs import frontier_mixture


def get_config() -> ml_collections.ConfigDict:
  """Returns the config of one cell's sweep and, in `choice`, what to choose."""
  config = frontier_mixture.get_config()
  config.calls = (5, 6, 8, 10, 15, 20, 30, 50)
  config.out = "runs/frontier_table"
  config.solvers = (  # methods that others have published
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc(order=3)",
    "deis(order=3)",
    "ipndm(order=3)",
    "ipndm(order=4)",
  )
  config.grids = ("vp_quadratic", "angular")
  config.choice = ml_collections.ConfigDict(
    dict(
      solvers=(
        "angular_adams(order=3, corrector=False)",
        "angular_adams(order=2)",
        "angular_adams(order=4)",
      ),
      scales=(0.8, 1.2, 1.7, 2.2),  # of the angular grid
      bends=(0.5, 1.0),
      seeds=(1, 2),  # other noises for the default
      reference_steps=200,  # of these and of the held-out oracles
      few=20,  # up to so many calls there is more to choose from
      grids_of_many=("angular", "angular(1.2, 1.0)", "angular(0.8, 1.0)"),
      held_out=(
        "heavy_tails_edm",
        "nearly_flat_edm",
        "g16_edm",
        "g2_edm",
        "digits_empirical_edm",
        "heavy_tails_vp",
        "digits_empirical_vp",
      ),
      held_out_grids=("vp_quadratic", "karras", "cosine"),
      held_out_noises=512,
      held_out_calls=(5, 6, 8, 10, 15, 20, 30),
    )
  )
  return config
