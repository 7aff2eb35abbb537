"""Solvers: functions (process, grid, **options) -> Tableau.

One method, one file, named as its paper names it. To add one: its file, a line
here, an entry in the table of cases that the tests run, tests/solvers/cases.py.
`from_spec("unipc(order=3)")` finds them by text.
"""

from jaxdiff.solvers import specs
from jaxdiff.solvers import v3_statistics
from jaxdiff.solvers.adams_bashforth import adams_bashforth
from jaxdiff.solvers.adasde import adasde
from jaxdiff.solvers.analytical_first_step import analytical_first_step
from jaxdiff.solvers.angular_adams import angular_adams
from jaxdiff.solvers.annealed_langevin import annealed_langevin
from jaxdiff.solvers.balanced_adams import balanced_adams
from jaxdiff.solvers.bdia import bdia
from jaxdiff.solvers.belm import belm
from jaxdiff.solvers.building import encoder
from jaxdiff.solvers.building import for_budget
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.cab import cab
from jaxdiff.solvers.dc_solver import dc_solver
from jaxdiff.solvers.ddim import ddim
from jaxdiff.solvers.ddpm import ddpm
from jaxdiff.solvers.default import default
from jaxdiff.solvers.deis import deis
from jaxdiff.solvers.deis import deis_rk
from jaxdiff.solvers.dpm_solver import dpm_solver
from jaxdiff.solvers.dpm_solver import orders_for_budget
from jaxdiff.solvers.dpm_solver_v3 import dpm_solver_v3
from jaxdiff.solvers.dpm_solver_v3 import Recentred
from jaxdiff.solvers.dpm_solver_v3 import recentred
from jaxdiff.solvers.dpmpp_2m import dpm_solver_2m
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.solvers.dpmpp_2m import res_multistep
from jaxdiff.solvers.dpmpp_2m_sde import dpmpp_2m_sde
from jaxdiff.solvers.dpmpp_2s_ancestral import dpmpp_2s_ancestral
from jaxdiff.solvers.dpmpp_3m import dpm_solver_3m
from jaxdiff.solvers.dpmpp_3m import dpmpp_3m
from jaxdiff.solvers.dpmpp_3m_sde import dpmpp_3m_sde
from jaxdiff.solvers.dpmpp_sde import dpmpp_sde
from jaxdiff.solvers.dyweight import dyweight
from jaxdiff.solvers.edict import edict
from jaxdiff.solvers.epd import epd
from jaxdiff.solvers.er_sde import er_sde
from jaxdiff.solvers.euler import euler
from jaxdiff.solvers.euler_ancestral_rf import euler_ancestral_rf
from jaxdiff.solvers.euler_maruyama import euler_maruyama
from jaxdiff.solvers.exact_inversion import exact_inversion
from jaxdiff.solvers.exact_inversion import Inversion
from jaxdiff.solvers.exact_inversion import inverted
from jaxdiff.solvers.exponential_ab import exponential_ab
from jaxdiff.solvers.exponential_rk import exp_heun_2_x0
from jaxdiff.solvers.exponential_rk import exponential_rk
from jaxdiff.solvers.final_step import final_step
from jaxdiff.solvers.gamma_sampling import gamma_sampling
from jaxdiff.solvers.gamma_sampling import jump_times
from jaxdiff.solvers.gradient_estimation import gradient_estimation
from jaxdiff.solvers.heun import heun
from jaxdiff.solvers.heun import heun_churn
from jaxdiff.solvers.heunpp2 import heunpp2
from jaxdiff.solvers.inject_noise import inject_noise
from jaxdiff.solvers.ipndm import ipndm
from jaxdiff.solvers.ipndm_v import ipndm_v
from jaxdiff.solvers.langevin import langevin
from jaxdiff.solvers.langevin import with_langevin
from jaxdiff.solvers.lms import lms
from jaxdiff.solvers.midpoint import midpoint
from jaxdiff.solvers.neural_solver import neural_solver
from jaxdiff.solvers.pfdiff import pfdiff
from jaxdiff.solvers.pndm import fon
from jaxdiff.solvers.pndm import plms
from jaxdiff.solvers.pndm import pndm
from jaxdiff.solvers.pndm import s_pndm
from jaxdiff.solvers.restart import restart
from jaxdiff.solvers.reverse_diffusion import reverse_diffusion
from jaxdiff.solvers.rex import rex
from jaxdiff.solvers.rk4 import rk4
from jaxdiff.solvers.runge_kutta import runge_kutta
from jaxdiff.solvers.rx_dpm import rx_dpm
from jaxdiff.solvers.sa_solver import sa_solver
from jaxdiff.solvers.seeds import seeds
from jaxdiff.solvers.specs import from_spec
from jaxdiff.solvers.stork import stork
from jaxdiff.solvers.transfer import normal_form
from jaxdiff.solvers.transfer import transfer
from jaxdiff.solvers.unic import unic
from jaxdiff.solvers.unipc import unipc

__all__ = [
  "adams_bashforth",
  "adasde",
  "analytical_first_step",
  "angular_adams",
  "balanced_adams",
  "Recentred",
  "annealed_langevin",
  "bdia",
  "belm",
  "cab",
  "dc_solver",
  "ddim",
  "ddpm",
  "default",
  "deis",
  "deis_rk",
  "dpm_solver",
  "dpm_solver_2m",
  "dpm_solver_3m",
  "dpm_solver_v3",
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "dpmpp_2s_ancestral",
  "dpmpp_3m",
  "dpmpp_3m_sde",
  "dpmpp_sde",
  "dyweight",
  "edict",
  "epd",
  "encoder",
  "er_sde",
  "euler",
  "euler_ancestral_rf",
  "exact_inversion",
  "exp_heun_2_x0",
  "exponential_ab",
  "exponential_rk",
  "final_step",
  "fon",
  "euler_maruyama",
  "for_budget",
  "from_spec",
  "gamma_sampling",
  "gradient_estimation",
  "heun",
  "heun_churn",
  "heunpp2",
  "inject_noise",
  "Inversion",
  "inverted",
  "ipndm",
  "ipndm_v",
  "lms",
  "jump_times",
  "langevin",
  "midpoint",
  "v3_statistics",
  "normal_form",
  "orders_for_budget",
  "neural_solver",
  "pfdiff",
  "plms",
  "pndm",
  "res_multistep",
  "reverse_diffusion",
  "rex",
  "rk4",
  "runge_kutta",
  "s_pndm",
  "recentred",
  "restart",
  "rx_dpm",
  "sa_solver",
  "seeds",
  "solver",
  "specs",
  "stork",
  "unic",
  "transfer",
  "unipc",
  "with_langevin",
]
