"""A search for 8 calls on the 64-dimensional mixture of digits, EDM noise.

  python -m experiments.search --config=experiments/configs/search_mixture.py

About two minutes on two cores for 1,000 candidates on 256 noises.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  return ml_collections.ConfigDict(
    dict(
      target="digits_mixture",  # an oracle, or the folder of a trained run
      data="",  # of a trained run; "": the run's own
      process="edm",  # edm, vp, flow, ve, sub_vp
      method="s3",  # s3 (guided), evolution, times, gits
      calls=8,
      budget=1000,  # candidates, each run on all noises
      noises=256,  # that the search sees
      held_out=2048,  # that it does not see
      reference_steps=200,  # of RK4
      chunk=0,  # candidates at once; 0: what suits the device
      seed=0,
      float64=False,
      out="runs/search_mixture",
      title="64-dimensional mixture of digits, EDM noise, 8 calls",
    )
  )
