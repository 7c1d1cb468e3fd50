"""`fokker systems`, `fokker reproduce`, `fokker cite`: what the catalogue holds, measured again, cited."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fokker.cli import spec
from fokker.cli.terminal import Progress, print_json, print_table
from fokker.errors import FokkerError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker systems --family solvers --json")(systems)
    app.command(epilog="Example: fokker reproduce dpm-solver-pp --null")(reproduce)
    app.command(epilog="Example: fokker cite dpm-solver-pp edict")(cite)


def systems(
    ids: Annotated[list[str] | None, typer.Argument(help="Show these in full; all in a table if left out.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family, such as solvers.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as solver or guidance.")] = None,
    status: Annotated[str | None, typer.Option(help="Only works, 'not reproduced' or planned.")] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Also what is no published system of the list.")] = False,
    json: Json = False,
) -> None:
    """List the published systems: where each lives here, and whether its check passes."""
    from fokker.catalogue import as_json, count, get, measured, records
    from fokker.errors import unknown

    if status is not None and status not in measured.STATUSES:
        raise unknown("status", status, measured.STATUSES)
    data = measured.read()
    chosen = [get(name) for name in ids] if ids else records(family, kind, systems_only=not blocks and kind is None)
    if ids and (family or kind):
        raise FokkerError("ids were given together with --family or --kind; give one or the other")
    chosen = [r for r in chosen if status is None or (r.system and measured.verdict(r, data.get(r.id)) == status)]
    if json:
        print_json([as_json(record, data) for record in chosen])
    elif ids:
        for record in chosen:
            _show(as_json(record, data))
    else:
        print_table(measured.table(chosen, data), ("id", "family", "kind", "status", "arxiv", "title"))
        total = count(data)
        typer.echo(f"\n{len(chosen)} shown; of all systems " + ", ".join(f"{n} {name}" for name, n in total.items()))


def _show(record: dict[str, object]) -> None:
    for name in ("id", "title", "arxiv", "authors", "family", "kind", "status", "entry", "claim"):
        value = record[name]
        text = ", ".join(value) if isinstance(value, list) else str(value or "")
        if text:
            typer.echo(f"{name:8}{text}")
    typer.echo("")


def reproduce(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of systems, as `fokker systems` lists them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every check and its null; keeps the numbers.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="These checks and their nulls; keeps the numbers.")] = False,
    null: Annotated[bool, typer.Option("--null", help="Run it broken on purpose: the check must fail.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0..2.")] = "0..2",
    out: Annotated[Path | None, typer.Option(help="With --all or --keep: keep the numbers here, not in the catalogue.")] = None,
    page: Annotated[Path | None, typer.Option(help="With --all or --keep: also write the page of results here.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With --all or --keep: checks at once; as many as cores if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the check of a system: what was measured, beside what, what was expected, the verdict.

    Exit code 0 when the check passes (with --null: when it fails, as it must), 1 when it does not.
    """
    from fokker import checks

    chosen = spec.seeds(seeds)
    if bool(ids) == every:
        raise FokkerError("give the ids of systems or --all, and not both; `fokker systems` lists the ids")
    if not (every or keep) and (out or page or jobs):
        raise FokkerError("--out, --page and --jobs go with --all or --keep, which keep the numbers")
    for name in ids or []:
        checks.load(name)
    if every or keep:
        if null:
            raise FokkerError("--all and --keep run every null as well; leave out --null")
        _keep(ids or checks.checked(), chosen, out, page, jobs or os.cpu_count() or 1, json)
        return
    reports = []
    for name in ids or []:
        with Progress(name, len(chosen)) as bar:
            done: list[checks.SeedRun] = []

            def on_seed(run: checks.SeedRun, done: list[checks.SeedRun] = done, bar: Progress = bar) -> None:
                done.append(run)
                bar.update(len(done))

            reports.append(checks.reproduce(name, null, chosen, on_seed))
        if not json:
            for line in reports[-1].lines():
                typer.echo(line)
    if json:
        print_json(reports[0].as_json() if len(reports) == 1 else [report.as_json() for report in reports])
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


def _keep(ids: list[str], seeds: list[int], out: Path | None, page: Path | None, jobs: int, json: bool) -> None:
    from fokker import checks
    from fokker.catalogue import measured

    ok = True
    with Progress("checks", 2 * len(ids)) as bar:
        done = 0

        def on_report(report: checks.Report) -> None:
            nonlocal done, ok
            done, ok = done + 1, ok and report.ok
            bar.update(done)
            if not json:
                name = f"{report.id}{' (null)' if report.null else ''}"
                typer.echo(f"{'ok    ' if report.ok else 'NOT OK'}  {name:40}  {report.seconds:7.1f} s")

        data = checks.reproduce_all(out, ids, seeds, on_report, jobs)
    if page is not None:
        page.write_text(measured.render(data))
    if json:
        print_json(data)
    raise typer.Exit(0 if ok else 1)


def cite(
    ids: Annotated[list[str], typer.Argument(help="Ids of systems, as `fokker systems` lists them.")],
    text: Annotated[bool, typer.Option("--text", help="Lines of plain text in place of BibTeX.")] = False,
) -> None:
    """Print the papers of the methods that were used, as BibTeX."""
    from fokker import cite as citing

    typer.echo(citing.paragraph(ids) if text else citing.cite(ids))
