"""Charts in one house style: a quiet frame, colours that colour-blind readers can tell apart, curves named where they end."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.pictures import before_after as before_after
from fokker.pictures import image_grid as image_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, which is too pale for a line on white; seven colours by eight markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#333333", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
INK, MUTED, GRID, PALE = "#1f2430", "#6b7280", "#e5e7eb", "#c3c8d1"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
}

Points = Sequence[Sequence[float]]


@runtime_checkable
class HasLogProb(Protocol):
    """Anything with a log-density: a law."""

    def log_prob(self, x: Tensor) -> Tensor: ...


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _written(figure: "Figure", path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise FokkerError(f"{path.name} has no known ending; charts are written as .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the order of `wanted` and as near to it as least squares allow.

    Pool adjacent violators on wanted_i - i gap. Reference: Barlow, Bartholomew, Bremner, Brunk 1972, "Statistical inference
    under order restrictions".
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = wanted[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    out = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        out[i] = flat[rank] + rank * gap
    return out


def error_curves(
    curves: Mapping[str, Points],
    path: str | Path,
    title: str = "",
    xlabel: str = "network evaluations a sample",
    ylabel: str = "error",
    emphasise: Sequence[str] = (),
    floor: float | None = None,
    floor_label: str = "floor",
) -> Path:
    """Errors against evaluations on two logarithmic axes, every curve named at its right end, up to twenty and more.

    curves     name -> points (evaluations, error) or (evaluations, error, low, high); an interval is drawn as a bar
    emphasise  names drawn strong, the others step back in grey (default: all are equal)
    floor      a level below which errors mean nothing, drawn as a band

    Points that are not finite or not positive have no place on a logarithmic axis: they are left out, and a note below
    says how many of which curve.
    """
    import matplotlib

    unknown_names = [name for name in emphasise if name not in curves]
    if not curves or unknown_names:
        raise FokkerError(
            f"{len(curves)} curves and emphasise={list(emphasise)}: give at least one curve, and names among them"
        )
    kept = {
        name: [p for p in points if all(math.isfinite(v) and v > 0 for v in p[:2])] for name, points in curves.items()
    }
    lost = {name: len(points) - len(kept[name]) for name, points in curves.items() if len(points) > len(kept[name])}
    drawn = {name: sorted(points, key=lambda p: p[0]) for name, points in kept.items() if points}
    if not drawn:
        raise FokkerError("no curve has a finite positive point; there is nothing to draw")
    with matplotlib.rc_context(_STYLE):
        height = max(4.4, 0.2 * len(drawn) + 1.2)
        figure = _figure(8.4, height)
        ax = figure.add_subplot()
        ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
        looks = dict(zip(sorted(drawn, key=lambda name: bool(emphasise) and name not in emphasise), cycle(_looks())))
        for name, points in drawn.items():
            colour, marker, line = looks[name]
            strong = not emphasise or name in emphasise
            x, y = [p[0] for p in points], [p[1] for p in points]
            style: dict[str, Any] = {"color": PALE, "linewidth": 1.0, "zorder": 2}
            if strong:
                style = {"color": colour, "linestyle": line, "marker": marker, "zorder": 3}
            ax.plot(x, y, markeredgecolor="white", markeredgewidth=0.6, **style)
            if strong and all(len(p) >= 4 for p in points):
                bars = [[max(p[1] - p[2], 0) for p in points], [max(p[3] - p[1], 0) for p in points]]
                ax.errorbar(x, y, bars, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.7, zorder=2.5)
        _evaluation_ticks(ax, sorted({p[0] for points in drawn.values() for p in points}))
        if floor is not None and floor > 0:
            ax.axhspan(0, floor, color=GRID, alpha=0.6, zorder=1, linewidth=0)
            ax.annotate(
                floor_label, (0.01, floor), xycoords=("axes fraction", "data"), color=MUTED, fontsize=8, va="bottom"
            )
        figure.canvas.draw()
        _name_ends(ax, drawn, looks, set(emphasise) or set(drawn))
        if lost:
            note = "not finite or not positive, left out: " + ", ".join(
                f"{name} ({count})" for name, count in lost.items()
            )
            figure.supxlabel(note, fontsize=7.5, color=MUTED, x=0.01, ha="left")
        return _written(figure, path)


def _looks() -> list[tuple[str, str, str]]:
    """Colour, marker and line style by number: 56 looks, no two of one colour with the same marker."""
    lines = ("-", "--", "-.")
    return [
        (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], lines[(i // len(COLOURS)) % 3])
        for i in range(len(COLOURS) * len(MARKERS))
    ]


def _evaluation_ticks(ax: "Axes", evaluations: list[float]) -> None:
    """Ticks at the measured numbers of evaluations, those left out that would touch the one before."""
    shown: list[float] = []
    span = math.log(evaluations[-1] / evaluations[0]) or 1.0
    for value in evaluations:
        if not shown or math.log(value / shown[-1]) > 0.035 * span:
            shown.append(value)
    ax.set_xticks(shown, [f"{v:g}" for v in shown])
    ax.minorticks_off()


def _name_ends(
    ax: "Axes", drawn: Mapping[str, list[Sequence[float]]], looks: Mapping[str, tuple[str, str, str]], strong: set[str]
) -> None:
    """The name of each curve to the right of the axes, at the height where the curve ends, moved apart where they meet."""
    to_fraction = (ax.transData + ax.transAxes.inverted()).transform
    ends = {name: to_fraction((points[-1][0], points[-1][1])) for name, points in drawn.items()}
    lines = ax.get_window_extent().height / ax.get_figure(root=True).dpi * 72 / 11.5  # type: ignore[union-attr]
    heights = spread_apart([min(max(float(end[1]), 0.0), 1.0) for end in ends.values()], 1 / max(lines, 1.0))
    shift = min(0.0, 1.02 - max(heights)) or max(0.0, -0.02 - min(heights))
    for (name, end), height in zip(ends.items(), heights):
        colour, marker, _ = looks[name]
        ink = colour if name in strong else MUTED
        ax.annotate(
            name,
            xy=(float(end[0]), float(end[1])),
            xytext=(1.05, height + shift),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=ink,
            fontsize=8.5,
            fontweight="bold" if len(strong) < len(drawn) and name in strong else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.5, "alpha": 0.45, "shrinkA": 9, "shrinkB": 3},
        )
        if name in strong:
            ax.plot(
                [1.035],
                [height + shift],
                marker,
                color=ink,
                transform=ax.transAxes,
                clip_on=False,
                markeredgecolor="white",
            )


def training_curve(
    samples_seen: Sequence[float],
    loss: Sequence[float],
    path: str | Path,
    title: str = "",
    others: Mapping[str, Points] | None = None,
    xlabel: str = "samples seen",
    ylabel: str = "loss",
    smoothing: float = 0.02,
) -> Path:
    """The loss against samples seen: every step pale, and its average over `smoothing` of the run strong.

    `others` are further curves on the same axes, name -> points (samples seen, value): a held-out loss, a metric. The axis
    of the loss is logarithmic where the curve spans more than a factor of three.
    """
    import matplotlib
    from matplotlib.ticker import EngFormatter

    x, y = np.asarray(samples_seen, dtype=float), np.asarray(loss, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) == 0:
        raise FokkerError(f"{x.shape} numbers of samples and {y.shape} losses; give one loss for each, at least one")
    fine = np.isfinite(y)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(7.2, 3.8)
        ax = figure.add_subplot()
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        smooth = _running_mean(y[fine], max(1, round(smoothing * fine.sum())))
        ax.plot(x[fine], y[fine], color=COLOURS[6], linewidth=0.6, alpha=0.45)
        ax.plot(x[fine], smooth, color=COLOURS[0], linewidth=1.8, label="training (averaged)")
        for (name, points), colour, marker in zip((others or {}).items(), cycle(COLOURS[1:]), cycle(MARKERS)):
            px, py = [p[0] for p in points], [p[1] for p in points]
            ax.plot(px, py, color=colour, marker=marker, markeredgecolor="white", markeredgewidth=0.6, label=name)
        for place in x[~fine]:
            ax.axvline(place, color=COLOURS[1], linewidth=0.8, alpha=0.7)
        seen = smooth[smooth > 0]
        if len(seen) and (y[fine] > 0).all() and seen.max() / seen.min() > 3:
            ax.set_yscale("log")
            _plain_log_axis(ax)
        else:
            high = np.quantile(y[fine], 0.999) if fine.any() else 1.0
            ax.set_ylim(top=max(high, float(smooth.max(initial=0.0))) * 1.05)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.margins(x=0.01)
        if others:
            ax.legend(loc="upper right")
        return _written(figure, path)


def _plain_log_axis(ax: "Axes") -> None:
    """1, 2 and 5 times the powers of ten as plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _running_mean(y: "np.ndarray[Any, np.dtype[np.float64]]", width: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The mean over a centred window, of which the part beyond either end is left out."""
    total = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - width // 2, 0)
    last = np.minimum(np.arange(len(y)) + width // 2 + 1, len(y))
    means: np.ndarray[Any, np.dtype[np.float64]] = (total[last] - total[first]) / (last - first)
    return means


def scatter(
    samples: Tensor | Mapping[str, Tensor],
    path: str | Path,
    law: HasLogProb | Tensor | None = None,
    title: str = "",
    extent: float | None = None,
) -> Path:
    """Samples (n, 2) over their law: one panel for each named set, all on the same axes.

    law     with a log-density: shaded regions of 50, 80 and 95 % of its mass; or draws (m, 2): grey points; or nothing
    extent  half the side of the square that is shown (default: 99.5 % of all points)
    """
    import matplotlib

    panels = dict(samples) if isinstance(samples, Mapping) else {"": samples}
    real = law.detach().cpu() if isinstance(law, Tensor) else None
    everything = [*panels.values(), *([real] if real is not None else [])]
    if not panels or any(s.ndim != 2 or s.shape[1] != 2 for s in everything):
        raise FokkerError(f"samples of shapes {[tuple(s.shape) for s in everything]}: give sets of (n, 2) points")
    points = torch.cat([s.detach().to("cpu", torch.float64) for s in everything])
    points = points[points.isfinite().all(dim=1)]
    side = extent or 1.1 * float(points.abs().amax(dim=1).quantile(0.995))
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        columns = min(4, len(panels))
        rows = -(-len(panels) // columns)
        figure = _figure(3.1 * columns + 0.3, 3.1 * rows + (0.6 if title else 0.3))
        for index, (name, found) in enumerate(panels.items()):
            ax = figure.add_subplot(rows, columns, index + 1)
            if isinstance(law, HasLogProb):
                _shade(ax, law, side)
            elif real is not None:
                ax.scatter(real[:, 0].numpy(), real[:, 1].numpy(), s=4, color=PALE, linewidths=0)
            shown = found.detach().cpu().numpy()
            ax.scatter(
                shown[:, 0],
                shown[:, 1],
                s=max(1.5, min(9.0, 6000 / len(shown))),
                color=COLOURS[1],
                alpha=0.6,
                linewidths=0,
            )
            ax.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
            ax.set_title(name, fontsize=9.5, fontweight="normal")
            ax.locator_params(nbins=6, steps=[1, 2, 5, 10])
            if index % columns:
                ax.tick_params(labelleft=False)
            if index < len(panels) - columns:
                ax.tick_params(labelbottom=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        return _written(figure, path)


def _shade(ax: "Axes", law: HasLogProb, side: float) -> None:
    """Regions of highest density that hold 95, 80 and 50 % of the mass inside the square."""
    axis = torch.linspace(-side, side, 240, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = law.log_prob(grid).detach().cpu().double().exp()
    ranked = density.sort(descending=True).values
    mass = ranked.cumsum(dim=0) / ranked.sum()
    levels = sorted({float(ranked[int((mass < share).sum().clamp(max=len(ranked) - 1))]) for share in (0.95, 0.8, 0.5)})
    values = density.reshape(240, 240).T.numpy()
    shades = ("#e3edf7", "#c9ddf0", "#a6c8e6")[-len(levels) :]
    ax.contourf(axis.numpy(), axis.numpy(), values, [*levels, float(ranked[0]) * 1.01], colors=shades)
