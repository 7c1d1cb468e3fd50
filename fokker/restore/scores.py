"""A coloured table of scores: methods down, problems across."""

import math
from collections.abc import Mapping
from pathlib import Path


def scores(value: Mapping[tuple[str, str], float], path: str | Path, title: str) -> Path:
    """Write the table of `value[method, problem]` (1 is perfect, larger is worse) as a PNG, best methods first."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(p for _, p in value))
    names = list(dict.fromkeys(m for m, _ in value))

    def rank(method: str) -> float:
        found = [math.log(value[method, p]) for p in problems if (method, p) in value]
        return sum(found) / len(found)

    methods = sorted(names, key=rank)
    colours = matplotlib.colormaps["magma_r"]
    # beyond 20 all is equally dark, so that one failure does not wash out the rest
    worst = math.log(min(max(*value.values(), 2.0), 20.0))
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.9 + 0.95 * len(problems), 0.9 + 0.34 * len(methods)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        for row, method in enumerate(methods):
            for column, problem in enumerate(problems):
                known = value.get((method, problem))
                share = 0.0 if known is None else min(max(0.0, math.log(known)) / worst, 1.0) * 0.85
                colour = "white" if known is None else colours(share)
                ax.fill_between([column, column + 1], row, row + 1, color=colour, linewidth=0)
                text = "-" if known is None else f"{known:.{max(0, 2 - int(math.log10(max(known, 1.0))))}f}"
                ink = "white" if share > 0.42 else "#1f2430"
                ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
        ax.set_xticks([k + 0.5 for k in range(len(problems))], problems)
        ax.set_yticks([k + 0.5 for k in range(len(methods))], methods)
        ax.set(xlim=(0, len(problems)), ylim=(len(methods), 0))
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
        figure.savefig(path)
    return Path(path)
