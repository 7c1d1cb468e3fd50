"""What a command prints: JSON for scripts, aligned text for people, a progress bar only where somebody watches."""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import typer

PATIENCE = 2.0  # seconds after which a bar appears


def print_json(data: Any) -> None:
    """Strict JSON on stdout, one document."""
    typer.echo(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False, default=str))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Aligned columns; on a terminal the last column is cut at its width."""
    lines = [list(columns)] + [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        typer.echo(text[:limit] if limit else text)


class Progress:
    """A bar on stderr for work of more than two seconds; nothing when stderr is not a terminal.

    Use as a context manager and call `update(done, **fields)`; the fields (loss, throughput) stand beside the bar.
    """

    def __init__(self, label: str, total: float | None = None) -> None:
        self.label, self.total = label, total
        self.begin = time.monotonic()
        self.watched = sys.stderr.isatty()
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: float, total: float | None = None, **fields: object) -> None:
        """Show that `done` of the total is done."""
        self.total = self.total if total is None else total
        if not self.watched or (self.bar is None and time.monotonic() - self.begin < PATIENCE):
            return
        if self.bar is None:
            self._start()
        note = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
        )
        self.bar.update(self.task, completed=done, total=self.total, note=note)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(self.label, total=self.total, note="")
        self.bar.start()
