"""Fills the pages with what the package itself knows: `<!-- generated: NAME -->` becomes the table of that name.

Nothing that a table can say is written by hand, so no page can fall behind the code.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fokker import catalogue
from fokker.catalogue import measured


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook of mkdocs; an unknown name stops the build."""
    return re.sub(r"<!-- generated: ([\w-]+) -->", lambda match: TABLES[match[1]](), markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def sentence(thing: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^A-Z.][.;])\s", text)[0].rstrip(".;:")


def paper(record: catalogue.Record) -> str:
    return f"[{record.arxiv}](https://arxiv.org/abs/{record.arxiv})" if record.arxiv else ""


def methods(kind: str) -> Callable[[], str]:
    """Every method of a kind: its name, its class, what it does, its options, its paper."""

    def rows() -> Iterable[Sequence[object]]:
        for record in catalogue.records(kind=kind, planned=False):
            target = catalogue.entry_class(record)
            yield f"`{record.id}`", sentence(target), options(target, record), paper(record)

    return lambda: table(("name", "what it is", "options", "paper"), rows())


def options(target: Any, record: catalogue.Record) -> str:
    """Options with their values when nothing is said."""
    found = []
    for parameter in inspect.signature(target).parameters.values():
        value = record.options.get(parameter.name, parameter.default)
        if isinstance(value, bool | int | float | str):
            found.append(f"`{parameter.name}={value}`")
    return " ".join(found)


def solvers() -> str:
    def rows() -> Iterable[Sequence[object]]:
        for record in catalogue.records(kind="solver", planned=False):
            solver = catalogue.resolve("solver", record.id)
            facts = solver.order, solver.evaluations, "yes" if solver.stochastic else ""
            yield f"`{record.id}`", sentence(type(solver)), *facts, options(type(solver), record), paper(record)

    return table(("name", "what it is", "order", "calls a step", "noise", "options", "paper"), rows())


# What a solver is good at, where its facts do not say it; the numbers behind the words are the arena's.
RECOMMENDED = {
    "adams": "15 calls and more, on quadratic time; the default of `fokker tune`'s references",
    "adaptive": "likelihoods and references: a tolerance in place of a number of steps",
    "bdia": "editing: an inverse that is exact to rounding",
    "ddim": "inversion, and as the baseline",
    "ddpm": "long stochastic runs, as models were trained for",
    "deis": "6 to 15 calls, on Karras or log-SNR grids",
    "dpm-3": "30 calls and more without guidance",
    "dpmpp-2m": "strong guidance, 10 to 20 calls",
    "dpmpp-2m-sde": "stochastic runs of 20 to 50 calls",
    "edict": "editing: an inverse that is exact to rounding",
    "heavyball-ghvb": "strong guidance at under 10 calls, where others diverge",
    "heun": "references by hand: two calls a step, no history",
    "heun-churn": "stochastic runs of EDM models of 50 calls and more",
    "mrs": "restoration with a mean-reverting process",
    "restart": "stochastic runs that must forget early errors",
    "unipc": "20 calls and more, on quadratic time",
}


def solver_facts() -> str:
    """Every entry that is a solver: order, calls a step, whether it draws noise and has an inverse, what to take it for."""
    import fokker as fk

    def rows() -> Iterable[Sequence[object]]:
        for record in catalogue.records(planned=False):
            target = catalogue.entry_class(record)
            if not (isinstance(target, type) and issubclass(target, fk.Solver)):
                continue
            solver = catalogue.resolve(record.kind, record.id)
            noise = "yes" if solver.stochastic else ""
            facts = solver.order, solver.evaluations, noise, inverse(solver), RECOMMENDED.get(record.id, "")
            yield f"`{record.id}`", *facts

    return table(("solver", "order", "calls a step", "noise", "invertible", "recommended for"), rows())


def inverse(solver: Any) -> str:
    """Whether a plan of the solver has an inverse, by asking for it."""
    import fokker as fk

    if solver.stochastic:
        return "no"
    try:
        solver.plan(fk.VP(), fk.grids.logsnr(4)).inverse()
    except fk.FokkerError:
        return "on reversed times"
    return "exactly"


def overhead() -> str:
    """What loops add to a free denoiser, from the last run of the benchmark that was kept."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "overhead.json").read_text())
    shapes = [name for name, value in kept.items() if isinstance(value, dict)]
    rows = [
        (loop, *(f"{kept[s][loop]['microseconds']:.0f} ({kept[s][loop]['over_bare']:.2f} x)" for s in shapes))
        for loop in kept[shapes[0]]
    ]
    return table(("loop", *shapes), rows) + f"\n\n{kept['hardware']}, one thread; torch {kept['torch']}; {kept['date']}."


def results() -> str:
    """The page of results without its title."""
    return measured.render().partition("\n")[2]


def counts() -> str:
    """How many systems stand where, by family."""
    data = measured.read()
    rows = []
    for family in catalogue.families():
        states = [measured.verdict(record, data.get(record.id)) for record in catalogue.records(family)]
        rows.append((family, len(states), *(states.count(status) for status in measured.STATUSES)))
    return table(("family", "systems", *measured.STATUSES), rows)


def commands() -> str:
    """Every command with its arguments, its options and its example, as its own --help says them."""
    import typer

    from fokker.cli.app import app

    def walk(command: Any, path: str) -> Iterable[str]:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, f"{path} {name}")
            return
        lines = []
        for parameter in command.params:
            name = ", ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
            said = isinstance(parameter.default, str | int | float) and not isinstance(parameter.default, bool)
            lines.append((f"`{name}`", getattr(parameter, "help", "") or "", f"`{parameter.default}`" if said else ""))
        example = (command.epilog or "").removeprefix("Example: ")
        help_text = " ".join((command.help or "").split())
        yield f"## {path}\n\n{help_text}\n\n```\n{example}\n```\n\n{table(('', 'what it says', 'unless told'), lines)}\n"

    return "\n".join(walk(typer.main.get_command(app), "fokker"))


def scaling() -> str:
    """Seconds by number of processes, as last measured and kept, and the model's for more."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "scaling.json").read_text())
    rows = [
        (n, made["seconds"], kept["training"][n]["seconds an update"], kept["training"][n]["loss"])
        for n, made in kept["sampling"].items()
    ]
    head = ("processes", "1,024 digits, seconds with start-up", "training, seconds an update", "loss after 100 updates")
    name = next(key for key in kept if key.startswith("model"))
    modelled = [(row["machine"], row["seconds"], row["efficiency"]) for row in kept[name]]
    return "\n".join(
        [
            f"Measured on {kept['hardware']}, one thread a process, {kept['date']}, commit {kept['commit']}:",
            "",
            table(head, rows),
            "",
            f"A {name}:",
            "",
            table(("machines", "seconds an update", "efficiency"), modelled),
        ]
    )


def restoration() -> str:
    """PSNR and detail of three processes under four solvers, as last measured and kept."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "restoration.json").read_text())
    made = {name: value for name, value in kept.items() if isinstance(value, dict) and "psnr" not in value}
    solvers = list(next(iter(made.values())))
    rows = [(name, *(f"{value[s]['psnr']} dB ({value[s]['detail']})" for s in solvers)) for name, value in made.items()]
    before = kept["measured"]
    said = (
        f"What was measured has {before['psnr']} dB and {before['detail']} of the detail. PSNR, and in brackets the energy of "
        f"fine detail over the truth's, at {kept['nfe']} evaluations after {kept['samples']} samples of training; "
        f"{kept['hardware']}, {kept['date']}:"
    )
    return f"{said}\n\n" + table(("process", *solvers), rows)


def tuning() -> str:
    """Tuned over best fixed by case and budget, as last measured and kept."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "tuning.json").read_text())
    ratios: dict[str, dict[int, float]] = {}
    for row in kept["rows"]:
        ratios.setdefault(row["case"], {})[row["nfe"]] = row["ratio"]
    budgets = sorted({row["nfe"] for row in kept["rows"]})
    lines = [(case, *(f"{found[b]:.2g}" if b in found else "" for b in budgets)) for case, found in ratios.items()]
    means = [
        f"{kind}: {kept[key]['cases']} pairs, geometric mean {kept[key]['geometric_mean']:.2f}, "
        f"largest {kept[key]['worst']:.2f}, {kept[key]['above_half']} above 0.5"
        for kind, key in (("Laws", "laws"), ("models of the zoo", "models"))
    ]
    head = ("case", *(f"{b} calls" for b in budgets))
    return table(head, lines) + f"\n\n{'; '.join(means)}. {kept['hardware']}, torch {kept['torch']}, {kept['date']}."


def fresh() -> str:
    """What the checks of working systems miss on seeds that no verdict was made with, as last run and kept."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "fresh_seeds.json").read_text())
    ran = kept["systems"]
    missed = {name: found["missed"] for name, found in ran.items() if found["missed"]}
    seeds = next(iter(ran.values()))["seeds"]
    rows = [
        (f"`{name}`", m["seed"], m.get("row", m.get("raised")), f"{m.get('value', ''):.3}", f"{m.get('op')} {m.get('bound')}")
        for name, found in missed.items()
        for m in found
    ]
    said = (
        f"Of {len(ran)} checks run on seeds {seeds[0]} to {seeds[-1]}, {len(ran) - len(missed)} hold in every row "
        f"({kept['hardware']}, {kept['date']}). The others:"
    )
    return f"{said}\n\n" + table(("system", "seed", "row", "measured", "expected"), rows)


def compositions() -> str:
    """The three combinations, as last measured and kept."""
    kept = json.loads((Path(__file__).parent.parent / "bench" / "results" / "compositions.json").read_text())
    parts = [f"Measured on {kept['hardware']}, one thread, {kept['date']}, commit {kept['commit']}."]
    for name, rows in kept.items():
        if isinstance(rows, dict):
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            lines = [(way, *(row.get(column, "") for column in columns)) for way, row in rows.items()]
            parts += ["", table((name, *columns), lines)]
    return "\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    **{kind: methods(kind) for kind in catalogue.KINDS},
    "solvers": solvers,
    "solver-facts": solver_facts,
    "overhead": overhead,
    "scaling": scaling,
    "compositions": compositions,
    "restoration": restoration,
    "tuning": tuning,
    "fresh": fresh,
    "results": results,
    "counts": counts,
    "commands": commands,
}
