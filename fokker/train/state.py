"""Everything that evolves in a training run, in one object, and the folder of its checkpoints."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fokker import store
from fokker.errors import FokkerError
from fokker.train.ema import EMA
from fokker.train.shard import fill, gathered

FORMAT = "fokker checkpoint 1"


class Meter:
    """What is summed between two log lines, on the device, so that no update waits for it.

    The tensor holds: loss, gradient norm and number of good updates since the last line; bad updates in a row now, the longest
    such row, and bad updates of the whole run.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.values = torch.zeros(6, device=device)

    def update(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count one update; returns 1.0 where its gradient is not finite, as a 0-d tensor."""
        good = torch.isfinite(norm)
        bad = (~good).to(torch.float32)
        row = (self.values[3] + 1) * bad
        entry = torch.stack([loss.to(torch.float32), norm.to(torch.float32), torch.ones_like(bad)])
        self.values[:3] += torch.where(good, entry, torch.zeros_like(entry))
        self.values[3:] = torch.stack([row, torch.maximum(self.values[4], row), self.values[5] + bad])
        return bad

    def read(self) -> dict[str, float]:
        """Mean loss and gradient norm since the last line, and the counts of bad updates."""
        loss, norm, n, row, longest, bad = self.values.tolist()
        n = max(n, 1.0)
        return {"loss": loss / n, "norm": norm / n, "row": row, "longest": longest, "bad": bad}

    def restart(self) -> None:
        """Begin a new line."""
        self.values[:3] = 0


class State:
    """Weights, their average, the optimiser, the meter and the one counter `samples`: all that a run needs to go on.

    Fields are enumerated from the objects themselves, so nothing can be forgotten; loading refuses missing, extra and
    differently shaped fields.
    """

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer, ema: EMA) -> None:
        self.module, self.optimiser, self.ema = module, optimiser, ema
        parameter = next(module.parameters())
        self.meter = Meter(parameter.device)
        self.samples = 0

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that evolves, by name, shared ones once; not copies."""
        fields: dict[str, Tensor] = {}
        seen: set[int] = set()
        names: dict[int, str] = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                fields[f"weights/{name}"] = value
            seen.add(id(value))
            names.setdefault(id(value), name)
        fields |= {f"average/{name}": copy for name, copy in self.ema.copy.items()}
        for parameter, slots in self.optimiser.state.items():
            for slot, value in slots.items():
                fields[f"optimiser/{slot}/{names[id(parameter)]}"] = value
        fields["meter"] = self.meter.values
        return fields

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any], origin: str | Path) -> None:
        """Become the saved state; raises FokkerError unless all fields are there, none is foreign and all shapes agree."""
        own = self.tensors()
        if header.get("format") != FORMAT:
            raise FokkerError(f"{origin} is a {header.get('format', 'file of another kind')!r}, not a {FORMAT!r}")
        store.check_fields(own, tensors, origin)
        for name, value in own.items():
            fill(value, tensors[name])
        self.samples = int(header["samples"])


class Checkpoints:
    """The last `keep` checkpoints of a run in one folder, named by samples seen."""

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise FokkerError(f"keep={keep} checkpoints; keep at least 1")
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"))

    def save(self, state: State, header: Mapping[str, Any], main: bool = True) -> Path:
        """Write the state, then remove what is older than the last `keep`; all processes call it, the main one writes."""
        path = self.folder / f"{state.samples:015d}.safetensors"
        tensors = gathered(state.tensors(), main)
        if not main:
            return path
        head = {"format": FORMAT, "samples": state.samples, "fields": len(tensors), "torch": torch.__version__}
        store.write(path, tensors, head | dict(header))
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, or None, and one sentence for each newer file that was refused."""
        refused: list[str] = []
        for path in reversed(self.paths()):
            try:
                store.read_header(path)
                return path, refused
            except FokkerError as error:
                refused.append(str(error))
        return None, refused

    def sweep(self) -> None:
        """Remove what a killed writer left behind."""
        _unlink(self.folder.glob("*.tmp"))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
