"""Pictures: the frontier, trainings, grids of images, points of the plane.

Every function returns a line: where the picture is, or why there is none. They
come after results that are on the disk already, so that a missing matplotlib,
which is an extra, is no error.
"""

import csv
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

# Families share a hue; the marker tells their members apart.
_STYLE = {
  "ddim": ("0.55", "o"),
  "euler": ("0.75", "o"),
  "heun": ("tab:brown", "s"),
  "midpoint": ("tab:brown", "v"),
  "rk4": ("tab:brown", "D"),
  "dpm_solver(order=2)": ("tab:purple", "s"),
  "dpm_solver(order=3)": ("tab:purple", "^"),
  "dpmpp_2m": ("tab:blue", "s"),
  "dpmpp_3m": ("tab:blue", "^"),
  "unipc(order=2)": ("tab:green", "s"),
  "unipc(order=3)": ("tab:green", "^"),
  "deis(order=3)": ("tab:orange", "^"),
  "deis(order=4)": ("tab:orange", "D"),
  "ipndm(order=3)": ("tab:red", "^"),
  "ipndm(order=4)": ("tab:red", "D"),
  "choose": ("#d55e00", "o"),
  "default": ("black", "o"),
  "ddpm": ("black", "x"),
  "heun_churn": ("black", "+"),
}


def picture(draw: Callable[..., str]) -> Callable[..., str]:
  """Turns draw(plt, ...) into a function that says so if nothing can draw.

  Args:
    draw: takes matplotlib.pyplot first; returns a line.
  """

  @functools.wraps(draw)
  def drawn(*args: Any, **options: Any) -> str:
    try:
      import matplotlib

      matplotlib.use("Agg")
      from matplotlib import pyplot as plt
    except ImportError as e:
      return (
        f"No picture: it needs matplotlib ({e}); install it with"
        ' pip install "jaxdiff[plots]"'
      )
    return draw(plt, *args, **options)

  return drawn


@picture
def frontier(
  plt: Any,
  rows: list[dict[str, Any]],
  floor: float,
  path: pathlib.Path,
  title: str,
) -> str:
  """Draws error and distance against network calls, and saves the picture.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    rows: rows of the sweep; each solver is drawn at its best grid.
    floor: distance to data of the converged ODE.
    path: path of the PNG file.
    title: title of the figure.
  """
  figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), sharex=True)
  panels = [
    ("median", "median error to the converged ODE"),
    ("rmse", "rmse to the converged ODE"),
    ("distance", "sliced Wasserstein distance to data"),
  ]
  for axis, (column, label) in zip(axes, panels, strict=True):
    points = {}
    for row in rows:
      if not math.isnan(row[column]):
        line = points.setdefault(row["solver"], {})
        at = row["nfe"]
        line[at] = min(line.get(at, math.inf), row[column])
    for name, line in points.items():
      colour, marker = _STYLE.get(name, ("tab:cyan", "."))
      calls = sorted(line)
      axis.plot(
        calls,
        [line[c] for c in calls],
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.2,
        label=name,
      )
    axis.set(xscale="log", yscale="log", xlabel="network calls", title=label)
    ticks = sorted({row["calls"] for row in rows})
    axis.set_xticks(ticks, [str(c) for c in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    if not points:  # stochastic solvers have no error to an ODE
      axis.set_title(f"{label}: none")
      continue
    values = [v for line in points.values() for v in line.values()]
    anchor = max(points.get("ddim", {0: max(values)}).values())
    axis.set_ylim(min(values) / 1.5, 4.0 * anchor)  # what is worse goes beyond
  axes[2].axhline(floor, color="0.3", linestyle=":", label="converged ODE")
  handles, labels = axes[2].get_legend_handles_labels()
  figure.legend(handles, labels, loc="center right", frameon=False, fontsize=9)
  figure.suptitle(f"{title}: lower is better")
  figure.tight_layout(rect=(0, 0, 0.89, 1))
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return f"Wrote {path}."


# Colours of Okabe and Ito, which the colour-blind can tell apart.
_OVERVIEW = {
  "choose": ("#d55e00", "o"),
  "default": ("black", "o"),
  "ddim": ("#999999", "v"),
  "heun": ("#a0522d", "s"),
  "dpmpp_2m": ("#0072b2", "^"),
  "unipc(order=3)": ("#009e73", "D"),
  "ipndm(order=3)": ("#cc79a7", "X"),
}

_OWN = ("choose", "default")  # drawn in front


@picture
def choice(plt: Any, report: Any, path: pathlib.Path) -> str:
  """Draws what `jaxdiff.choose` measured, a bar for each table.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    report: what `choose` returned beside the table.
    path: path of the PNG file.
  """
  budgets = list(report.chosen)
  figure, axes = plt.subplots(
    1, len(budgets), figsize=(6.4 * len(budgets), 6.4), squeeze=False
  )
  for axis, calls in zip(axes[0], budgets, strict=True):
    rows = [row for row in report.rows if row.calls == calls][::-1]
    names = [row.name for row in rows]
    axis.barh(names, [row.rmse for row in rows], color="#56b4e9", label="rmse")
    medians = [row.median for row in rows]
    axis.plot(medians, names, "|", color="black", markersize=9, label="median")
    axis.axvline(report.disagreement, color="0.4", linestyle=":")
    axis.set(xscale="log", title=f"{calls} calls")
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(alpha=0.25, axis="x")
  figure.supxlabel("error to the converged ODE; dotted: the reference's")
  axes[0][0].legend(loc="upper right", fontsize=8)
  figure.tight_layout()
  figure.savefig(path, dpi=100)
  plt.close(figure)
  return f"Wrote {path}."


@picture
def overview(plt: Any, panels: list[dict[str, Any]], path: pathlib.Path) -> str:
  """Draws the error against network calls, one panel for each target.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    panels: entries with "title" and "rows", rows of `experiments.frontier`.
    path: path of the PNG file.
  """
  figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.0))
  for axis, panel in zip(axes, panels, strict=True):
    for name, (colour, marker) in _OVERVIEW.items():
      line = {}
      for row in panel["rows"]:
        if row["solver"] == name:
          calls = row["calls"]
          line[calls] = min(line.get(calls, math.inf), row["rmse"])
      axis.plot(
        list(line),
        list(line.values()),
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=2.4 if name in _OWN else 1.3,
        label=name,
        zorder=3 if name in _OWN else 2,
      )
    ticks = sorted({row["calls"] for row in panel["rows"]})
    axis.set(xscale="log", yscale="log", xlabel="network calls")
    axis.set_xticks(ticks, [str(c) for c in ticks])
    plain = [r["rmse"] for r in panel["rows"] if r["solver"] == "ddim"]
    if plain:  # what is much worse goes beyond
      axis.set_ylim(None, 3.0 * max(plain))
    axis.minorticks_off()
    axis.set_title(panel["title"], fontsize=10)
    axis.grid(alpha=0.25)
  axes[0].set_ylabel("rmse to the converged ODE, per value")
  figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="lower center",
    ncols=len(_OVERVIEW),
    frameon=False,
    fontsize=9,
  )
  figure.tight_layout(rect=(0, 0.06, 1, 1))
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return f"Wrote {path}."


@picture
def samples(
  plt: Any,
  images: np.ndarray,
  path: pathlib.Path,
  title: str = "",
  shown: int = 100,
) -> str:
  """Draws samples where a picture can show them; returns what was done.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    images: f[n, height, width, 1 or 3] become a grid of the first `shown`,
      f[n, 2] points of the plane; nothing is drawn for other shapes.
    path: path of the PNG file.
    title: title of the picture.
    shown: number of images, at most.
  """
  if images.ndim == 4 and images.shape[-1] in (1, 3):
    said = image_grid(images[:shown], path, title=title)
    return f"{said[:-1]} (the first {len(images[:shown])})."
  if images.ndim == 2 and images.shape[-1] == 2:
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.scatter(*np.asarray(images).T, s=4, linewidths=0)
    axis.set_aspect("equal", "datalim")
    axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return f"Wrote {path}."
  return (
    f"No picture: samples of shape {list(images.shape[1:])} are neither images"
    " of 1 or 3 channels nor points of the plane."
  )


@picture
def image_grid(
  plt: Any,
  images: np.ndarray,
  path: pathlib.Path,
  columns: int = 10,
  title: str = "",
) -> str:
  """Saves images f[n, height, width, 1 or 3] in [-1, 1] as one picture."""
  images = np.clip((np.asarray(images, np.float32) + 1.0) / 2.0, 0.0, 1.0)
  n, height, width, channels = images.shape
  rows = math.ceil(n / columns)
  sheet = np.ones(
    (rows * (height + 1) - 1, columns * (width + 1) - 1, channels)
  )
  for i, image in enumerate(images):
    top, left = i // columns * (height + 1), i % columns * (width + 1)
    sheet[top : top + height, left : left + width] = image
  dpi = 150
  side = max(80, 2 * height) / dpi  # pixels of an image are no smaller than two
  figure = plt.figure(figsize=(columns * side, rows * side + 0.4))
  axis = figure.add_axes((0.01, 0.01, 0.98, 0.94 if title else 0.98))
  axis.imshow(
    sheet.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
  )
  axis.axis("off")
  if title:
    # a letter is about 0.6 of its size wide, of which 72 are an inch
    fits = 72 * figure.get_figwidth() / (0.6 * len(title))
    axis.set_title(title, fontsize=min(9.0, fits))
  figure.savefig(path, dpi=dpi)
  plt.close(figure)
  return f"Wrote {path}."


def in_range(images: np.ndarray) -> np.ndarray:
  """Returns images as f32 in [-1, 1]; pixels of 8 bits are scaled to it."""
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 127.5 - 1.0
  return images.astype(np.float32)


@picture
def image_rows(
  plt: Any, rows: dict[str, np.ndarray], path: pathlib.Path
) -> str:
  """Saves a picture with a named row of images for each entry.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    rows: f[n, height, width, 1 or 3] in [-1, 1] each, by its label.
    path: path of the PNG file.
  """
  n = len(next(iter(rows.values())))
  figure, axes = plt.subplots(
    len(rows), 1, figsize=(0.6 * n + 2.2, 0.62 * len(rows)), squeeze=False
  )
  for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
    line = np.concatenate(np.asarray(images, np.float32), axis=1)
    line = np.clip((line + 1.0) / 2.0, 0.0, 1.0)
    axis.imshow(line.squeeze(), cmap="gray", vmin=0, vmax=1)
    axis.text(-4, line.shape[0] / 2, label, ha="right", va="center", fontsize=8)
    axis.axis("off")
  figure.subplots_adjust(left=0.3, right=0.99, top=0.99, bottom=0.01)
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return f"Wrote {path}."


@picture
def search(
  plt: Any,
  scores: Any,
  rows: list[dict[str, Any]],
  path: pathlib.Path,
  title: str,
) -> str:
  """Draws every candidate of a search and the best so far; saves the picture.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    scores: f[m], in the order of evaluation.
    rows: the winner's and those of known solvers, as experiments.search has
      them.
    path: path of the PNG file.
    title: title of the figure.
  """
  figure, axis = plt.subplots(figsize=(7, 4.8))
  scores = np.asarray(scores)
  at = np.arange(1, len(scores) + 1)
  axis.plot(at, scores, ".", color="0.75", markersize=3, label="candidates")
  best = np.minimum.accumulate(scores)
  axis.plot(at, best, color="tab:red", label="best so far")
  for row, colour in zip(
    rows, ("tab:red", "tab:blue", "tab:green", "tab:brown")
  ):
    axis.axhline(
      row["held_out"],
      color=colour,
      linestyle="--",
      linewidth=1.0,
      label=f"{row['name']}, other noises",
    )
  axis.set(
    yscale="log",
    xlabel="candidates evaluated",
    ylabel="rmse to the converged ODE",
    title=title,
  )
  finite = scores[np.isfinite(scores)]
  low = min(finite.min(), *(row["held_out"] for row in rows))
  axis.set_ylim(0.8 * low, 30 * low)
  axis.grid(alpha=0.25)
  axis.legend(fontsize=8)
  figure.tight_layout()
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return f"Wrote {path}."


@picture
def training(
  plt: Any, table: pathlib.Path, path: pathlib.Path, title: str
) -> str:
  """Draws the losses of a run against updates; returns a line about it.

  Left the loss, without learned weighting; right the loss of every bucket of
  the noise, which tells where the network still improves.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    table: metrics.csv of the run.
    path: path of the PNG file.
    title: title of the figure.
  """
  with table.open(newline="") as f:
    rows = list(csv.DictReader(f))
  column = lambda name: np.array([float(r.get(name) or "nan") for r in rows])
  figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
  step = column("step")
  plain = "plain_loss" if "plain_loss" in rows[0] else "loss"
  axes[0].plot(step, column(plain), color="tab:blue")
  axes[0].set(title="loss", xlabel="updates", yscale="log")
  names = [name for name in rows[0] if name.startswith("bucket_loss_")]
  for i, name in enumerate(names):
    colour = plt.get_cmap("viridis")(i / max(len(names) - 1, 1))
    label = {0: "most noise", len(names) - 1: "least"}.get(i)
    values = column(name)
    seen = ~np.isnan(values)
    axes[1].plot(step[seen], values[seen], color=colour, label=label, lw=1)
  axes[1].set(title="loss by noise level", xlabel="updates", yscale="log")
  axes[1].legend()
  for axis in axes:
    axis.grid(alpha=0.25)
  figure.suptitle(title)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return f"Wrote {path}."


@picture
def point_panels(
  plt: Any, points: dict[str, np.ndarray], path: pathlib.Path, columns: int = 6
) -> str:
  """Saves a picture with a panel of points of the plane for each entry.

  Args:
    plt: matplotlib's pyplot, handed over by `picture`.
    points: f[n, 2] each, by its label.
    path: path of the PNG file.
    columns: panels beside one another.
  """
  rows = math.ceil(len(points) / columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(1.7 * columns, 1.9 * rows), squeeze=False
  )
  for axis in axes.flat:
    axis.axis("off")
  for axis, (label, x) in zip(axes.flat, points.items(), strict=False):
    axis.scatter(*np.asarray(x).T, s=1.5, linewidths=0)
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    axis.set_aspect("equal")
    axis.set_title(label, fontsize=7)
  figure.tight_layout(pad=0.3)
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return f"Wrote {path}."
