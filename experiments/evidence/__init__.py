"""The evidence: each system's central claim, run in miniature.

One module a system, named as the system is (`dpm_solver.py` for
`dpm-solver`). It holds

  TITLE, CLAIM, PAPER   what is claimed, and where
  SEEDS                 the seeds it is measured on, (0, 1, 2) as a rule
  BARS                  what must be reached: `at_most`, `at_least`
  REPORTED              what is measured and shown without a bar: `reported`
  LIMITS                what cannot be shown at this size, and why
  measure(seed)         -> {name: float}, every name of BARS and REPORTED

and is run by `python -m experiments.evidence --system=<slug>`.
"""
