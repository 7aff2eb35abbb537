"""Solver specifications: solvers by text, as in "heun_churn(churn=40)".

A spec is the name of a solver of this package and its options by name, values
as Python writes them. Words need no quotes, unipc(output=eps), and an option
that is a solver takes a spec: unic(predictor=deis(order=3)). Nothing is
evaluated but literals.

An order is the highest: `ipndm(order=3)` on a grid of two steps is of order 2
there, so that one spec serves every number of calls. A path is read for
statistics, dpm_solver_v3(statistics='statistics.npz').
"""

import ast
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import v3_statistics
from jaxdiff.solvers.building import inner_steps
from jaxdiff.solvers.building import Solver
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

# What papers, other libraries and earlier versions call a solver with options.
_CALLED = {
  "ddim_eta": "ddim(eta=0.5)",
  "midpoint_v": "runge_kutta(method='midpoint', output='v')",
  "dpmpp_2s": "dpm_solver(order=2, output='x0')",
  "dpmpp_3s": "dpm_solver(order=3, output='x0')",
  "exponential_ab_v": "exponential_ab(order=3, output='v')",
  "unic_dpmpp_2m": "unic(predictor=dpmpp_2m)",
  "unic_deis_3": "unic(predictor=deis(order=3))",
  "balanced_ab_2": "balanced_adams(order=2, corrector=False)",
  "balanced_ab_3": "balanced_adams(order=3, corrector=False, slope=0.15)",
  "angular_ab_3": "angular_adams(order=3, corrector=False)",
  "unip_2": "unipc(order=2, corrector=False)",
  "unip_3": "unipc(order=3, corrector=False)",
  "unipc_3_bh1": "unipc(order=3, variant='bh1')",
  "unipc_2_eps": "unipc(order=2, output='eps')",
  "deis_rho_3": "deis(order=3, variant='rho_ab')",
  "deis_rho_rk3": "deis_rk",
  "ipndm_v_published": "ipndm_v(published=True)",
  "dpmpp_2m_sde_heun": "dpmpp_2m_sde(solver_type='heun')",
  "dpm_2_ancestral": "dpmpp_2s_ancestral(output='eps')",
  "kutta3": "runge_kutta(method='kutta3')",
  "res_2s": "exponential_rk(method='res_2s')",
  "krogstad_4": "exponential_rk(method='krogstad_4')",
  "hochbruck_4": "exponential_rk(method='hochbruck_4')",
  "er_sde_3": "er_sde(order=3, phi='sde')",
  "edm": "heun_churn(churn=40)",
  "res_multistep_flow": "res_multistep(clock='flow')",
  "gradient_estimation_flow": "gradient_estimation(output='flow')",
  "heunpp2_flow": "heunpp2(output='flow')",
  "sa_solver_pece": "sa_solver(pece=True)",
  "dpmpp_2s_ancestral_flow": "dpmpp_2s_ancestral(down='flow')",
  "rex_heun": "rex(method='heun')",
  "rex_rk4": "rex(method='rk4')",
  "pfdiff_3_2": "pfdiff(skip=3, ahead=2)",
  "pfdiff_2_1": "pfdiff(skip=2)",
  "stork_eps": "stork(derivatives=1, output='eps')",
  # of ComfyUI, k-diffusion and RES4LYF
  "euler_ancestral": "ddim(eta=1.0)",
  "euler_ancestral_RF": "euler_ancestral_rf",
  "euler_a": "ddim(eta=1.0)",
  "dpm_2": "dpm_solver(order=2)",
  "dpmpp_2s_ancestral_RF": "dpmpp_2s_ancestral(down='flow')",
  "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
  "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
  "dpmpp_sde_gpu": "dpmpp_sde",
  "lcm": "gamma_sampling(gamma=1.0)",
  "tcd": "gamma_sampling(gamma=0.3, jump='time')",
  "scm": "gamma_sampling(gamma=1.0)",
  "res_2m": "res_multistep",
  "exp_heun_2": "exp_heun_2_x0",
  "uni_pc": "unipc(order=3, variant='bh1')",
  "uni_pc_bh2": "unipc(order=3, variant='bh2')",
}
# what `ast` says of text beyond reading: a zero byte, {[]: 1}, too deep a nest
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)
_BY_THEMSELVES = ("default", "restart")  # that are not made by `@solver`


def named() -> dict[str, Callable]:
  """Returns every solver of the package by its name, and `default`."""
  package = sys.modules[__package__]
  found = {name: getattr(package, name) for name in package.__all__}
  return {
    name: found[name]
    for name in sorted(found)
    if name in _BY_THEMSELVES or hasattr(found[name], "build")
  }


def options(solver: Callable) -> dict[str, inspect.Parameter]:
  """Returns the options that a spec of a solver can set, by name."""
  skip = {"process", "grid", "calls", "to_zero"}
  parameters = inspect.signature(solver).parameters
  return {k: p for k, p in parameters.items() if k not in skip}


def usage() -> str:
  """Returns a line for each solver: its options and what they are by default.

  `unic` hands further options on to its predictor.
  """
  return "\n".join(map(_signature, named()))


def parse(spec: str) -> tuple[Callable, dict[str, Any]]:
  """Returns (solver, options) of a spec such as "unipc(order=3)".

  Args:
    spec: the text.

  Raises:
    ValueError: for text that is no spec, an unknown solver or option (with the
      nearest one), or a value of another type than the option's.
  """
  try:
    tree = ast.parse(spec.strip(), mode="eval").body
  except _UNREADABLE:
    tree = None
  if not isinstance(tree, ast.Name | ast.Call):
    known = named()
    raise ValueError(
      f"solver={spec!r} is no solver; write a name and its options, as in"
      f" unipc(order=3){_near(spec.replace('-', '_').split('(')[0], known)}"
    )
  return _parse(tree, spec)


def from_spec(spec: str) -> Solver:
  """Returns the solver that a spec names, its options bound.

  Args:
    spec: its name and options, "unipc(order=3)".

  Raises:
    ValueError: as `parse`; for `default`, which takes a number of calls and no
      grid; for `dpm_solver_v3` without statistics.
  """
  solver, given = parse(spec)
  if solver is named()["default"]:
    raise ValueError(
      "the solver 'default' brings its own grid, and here a solver is put on"
      " another; call jaxdiff.default(process, calls), or name a solver such as"
      " angular_adams"
    )
  return bind(solver, given)


def bind(solver: Solver, given: dict[str, Any]) -> Solver:
  """Returns a solver with the options of a spec; orders are the highest ones.

  Args:
    solver: (process, grid, **options) -> Tableau.
    given: its options, as `parse` returns them.

  Raises:
    ValueError: for `dpm_solver_v3` without statistics.
  """
  missing = [
    name
    for name, p in options(solver).items()
    if p.default is p.empty and p.kind != p.VAR_KEYWORD and name not in given
  ]
  if missing:
    raise ValueError(
      f"{solver.__name__} needs {', '.join(missing)}; estimate it with"
      " jaxdiff.learning.v3_statistics.estimate, write it with"
      " jaxdiff.solvers.v3_statistics.save, and give the file:"
      f" {solver.__name__}({missing[0]}='statistics.npz')"
    )

  def made(process: GaussianProcess, grid: np.ndarray, steps: int, build):
    own = dict(given)
    if isinstance(own.get("statistics"), str):
      own["statistics"] = v3_statistics.load(own["statistics"], process)
    for name in _orders(solver, own):
      own[name] = min(own[name], max(1, steps))  # 0 may mean none
    return build(process, grid, **own)

  def bound(process: GaussianProcess, grid: ArrayLike) -> tables.Tableau:
    checks.process(process, f"{solver.__name__}(process, grid)")
    times = np.asarray(grid, np.float64)
    steps = inner_steps(process, times) if times.ndim and times.size else 1
    return made(process, grid, steps, solver)

  def backwards(process: GaussianProcess, grid: ArrayLike) -> tables.Tableau:
    return made(process, grid, len(grid) - 1, solver.build)

  bound.__name__ = backwards.__name__ = solver.__name__
  if hasattr(solver, "build"):
    bound.build = backwards  # of `encoder`
  return bound


def _orders(solver, given):
  """Returns the options that are an order which fewer steps lower."""
  known = options(solver)
  if callable(given.get("predictor")):  # of unic, which hands options on
    known = options(given["predictor"]) | known
  falls = lambda p: (
    p.default is None
    and int in _alternatives(p.annotation)
    and bool not in _alternatives(p.annotation)
  )
  return [
    name
    for name, value in given.items()
    if name in known and falls(known[name]) and isinstance(value, int)
  ]


def _parse(tree: ast.expr, spec: str) -> tuple[Callable, dict[str, Any]]:
  call = tree if isinstance(tree, ast.Call) else None
  head = call.func if call else tree
  known = named()
  if not isinstance(head, ast.Name) or head.id not in known:
    name = ast.unparse(head)
    raise ValueError(
      f"there is no solver {name!r}{_near(name, known)}; there are"
      f" {', '.join(known)}"
    )
  name, solver = head.id, known[head.id]
  takes = options(solver)
  example = f"as in {name}({next(iter(takes))}=...)" if takes else name
  if call and (call.args or any(k.arg is None for k in call.keywords)):
    raise ValueError(
      f"solver={spec!r}: options are given by name, {example}; it takes"
      f" {_signature(name)}"
    )
  given, passed_on = {}, {}
  for keyword in call.keywords if call else ():
    if keyword.arg in given:
      raise ValueError(f"solver={spec!r} gives {keyword.arg} twice")
    if keyword.arg in takes and takes[keyword.arg].kind != _REST:
      given[keyword.arg] = _value(keyword, takes[keyword.arg], name, spec)
    else:
      passed_on[keyword.arg] = keyword
  rest = any(p.kind == _REST for p in takes.values())
  further = {}
  if rest:  # unic: what it hands on is its predictor's
    predictor = given.get("predictor", takes["predictor"].default)
    further = options(predictor)
  for option, keyword in passed_on.items():
    if option not in further:
      names = [k for k, p in (takes | further).items() if p.kind != _REST]
      raise ValueError(
        f"{name} has no option {option!r}"
        f"{_near(option, names, ())}; it takes"
        f" {', '.join(names) or 'none'}"
      )
    given[option] = _value(keyword, further[option], name, spec)
  return solver, given


_REST = inspect.Parameter.VAR_KEYWORD


def _value(
  keyword: ast.keyword, parameter: inspect.Parameter, name: str, spec: str
):
  """Returns the value of an option, checked against what it is annotated as."""
  node, option = keyword.value, keyword.arg
  if parameter.annotation == Solver and isinstance(node, ast.Name | ast.Call):
    inner, given = _parse(node, spec)
    if not hasattr(inner, "build"):
      raise ValueError(f"{name}({option}={ast.unparse(node)}) brings a grid")
    return bind(inner, given) if given else inner
  if isinstance(node, ast.Name):
    value = {"inf": np.inf}.get(node.id, node.id)  # a word without its quotes
  else:
    try:
      value = ast.literal_eval(node)
    except _UNREADABLE:
      text = ast.get_source_segment(spec, node) or "..."
      raise ValueError(
        f"{name}({option}={text[:80]}): an option is a number, a word, True,"
        " False, None or a list of them"
      ) from None
  allowed = _alternatives(parameter.annotation)
  if option == "statistics":
    allowed = (str,)
  if not any(_is(value, kind) for kind in allowed):
    kinds = [_plain(kind) for kind in allowed]
    expected = " or ".join(_KINDS[k] for k in _KINDS if k in kinds)
    raise ValueError(
      f"{name}({option}={value!r}): {option} is"
      f" {expected or 'nothing that a text can give'}"
    )
  return value


_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "a word",
  Sequence: "a list",
}


def _alternatives(annotation: Any) -> tuple:
  union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  return typing.get_args(annotation) if union else (annotation,)


def _plain(kind: Any) -> Any:
  return typing.get_origin(kind) or kind


def _is(value: PyTree, kind: Any) -> bool:
  if kind in (None, type(None)):
    return value is None
  kind = _plain(kind)
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float)
  if kind is Sequence:
    return isinstance(value, list | tuple)
  return kind in (int, str) and isinstance(value, kind)


def _near(name: str, known: Any, called: Any = None) -> str:
  """Returns what to try instead of an unknown name, empty if nothing is."""
  called = _CALLED if called is None else called
  stem, _, number = name.rpartition("_")
  if name in called:
    return f"; did you mean {called[name]}?"
  if number.isdigit() and stem in known:
    if "order" in options(known[stem]):
      return f"; did you mean {stem}(order={number})?"
    return f"; did you mean {stem}?"
  near = difflib.get_close_matches(name.lower(), [*known, *called], n=1)
  if not near:
    return ""
  return f"; did you mean {called[near[0]] if near[0] in called else near[0]}?"


def _signature(name: str) -> str:
  """Returns a solver with its options: "heun_churn(churn=0.0, ...)"."""
  parts = []
  for option, p in options(named()[name]).items():
    if p.kind == _REST:
      parts.append("...")
    elif p.default is p.empty:
      parts.append(f"{option}=...")
    else:
      value = getattr(p.default, "__name__", repr(p.default))
      parts.append(f"{option}={value}")
  return f"{name}({', '.join(parts)})" if parts else name
