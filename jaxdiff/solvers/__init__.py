"""Solvers: functions (process, grid, **options) -> Tableau.

One method, one file, named as its paper names it. To add one: its file, a line
here, an entry in the table of cases, `catalogue.py`.
"""

from jaxdiff.solvers.building import encoder
from jaxdiff.solvers.building import for_budget
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.catalogue import Case
from jaxdiff.solvers.catalogue import CASES
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.deis import deis
from jaxdiff.solvers.deis import deis_rk
from jaxdiff.solvers.dpm_solver import dpm_solver
from jaxdiff.solvers.dpm_solver import orders_for_budget
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.solvers.dpmpp_3m import dpmpp_3m
from jaxdiff.solvers.euler import euler
from jaxdiff.solvers.heun import heun
from jaxdiff.solvers.heun import heun_churn
from jaxdiff.solvers.ipndm import ipndm
from jaxdiff.solvers.midpoint import midpoint
from jaxdiff.solvers.rk4 import rk4
from jaxdiff.solvers.unipc import unipc

__all__ = [
  "CASES",
  "Case",
  "ddim",
  "ddpm",
  "deis",
  "dpm_solver",
  "dpmpp_2m",
  "dpmpp_3m",
  "encoder",
  "euler",
  "for_budget",
  "heun",
  "heun_churn",
  "ipndm",
  "midpoint",
  "orders_for_budget",
  "rk4",
  "solver",
  "unipc",
]
