"""What a run tells while it goes on: a progress bar, log.jsonl, TensorBoard, pictures."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fokker import store

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Report:
    """The log of a run: one JSON line an interval, and a progress bar where somebody is looking.

    Lines hold samples, loss, norm (of the gradient), rate, bad (updates skipped) and seconds since the run was started or
    resumed. After a resume the lines that the resumed run will write again are removed first.
    """

    def __init__(self, out: Path | None, total: int, seen: int, active: bool, quiet: bool = False) -> None:
        self.path = out / "log.jsonl" if out and active else None
        self.total, self.began, self.first, self.active = total, time.monotonic(), seen, active
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0
        if self.path:
            self._rewind(seen)
        if active and not quiet and sys.stderr.isatty():
            self._open(seen)

    def _rewind(self, seen: int) -> None:
        assert self.path is not None
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["samples"] <= seen:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the run was killed
        store.write_text(self.path, "".join(kept))

    def _open(self, seen: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}% {task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", total=self.total, completed=seen, note="")
        self._bar.start()

    @property
    def looks(self) -> bool:
        """Whether a bar is shown and due for an update: reading the loss would make an accelerator wait."""
        return self._bar is not None and time.monotonic() - self._shown > 0.2

    def show(self, seen: int, loss: float) -> None:
        """Move the bar."""
        if self._bar is None or self._task is None:
            return
        self._shown = time.monotonic()
        speed = (seen - self.first) / max(self._shown - self.began, 1e-9)
        self._bar.update(self._task, completed=seen, note=f"loss {loss:.4f} · {speed:,.0f} samples/s ·")

    def line(self, values: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**values, "seconds": round(time.monotonic() - self.began, 3)})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def say(*sentences: str) -> None:
    """Tell the person at the terminal; called on the main process only."""
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)
