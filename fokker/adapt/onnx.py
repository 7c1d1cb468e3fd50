"""ONNX files of one denoiser call, and of a whole fixed plan; compared with what they were made from before they are kept."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.loop import pure
from fokker.plan import Plan
from fokker.store import replace

LARGEST = 1 << 30  # bytes of weights that stand in the file itself; a file of more than 2 GiB cannot be read


class _Call(nn.Module):
    """x, t and conditions in this order to E[x_0 | x_t]."""

    def __init__(self, denoiser: Denoiser, names: Sequence[str]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, list(names)

    def forward(self, x: Tensor, t: Tensor, cond: list[Tensor]) -> Tensor:
        x_0: Tensor = self.denoiser(x, t, **dict(zip(self.names, cond)))
        return x_0


class _Run(nn.Module):
    """x and conditions in this order to the plan's result."""

    def __init__(self, denoiser: Denoiser, plan: Plan, names: Sequence[str]) -> None:
        super().__init__()
        self.denoiser, self.names, self.run = denoiser, list(names), pure(denoiser, plan)

    def forward(self, x: Tensor, cond: list[Tensor]) -> Tensor:
        return self.run(x, **dict(zip(self.names, cond)))


def to_onnx(
    denoiser: Denoiser,
    path: str | Path,
    shape: Sequence[int],
    *,
    batch: int | None = None,
    tolerance: float = 1e-4,
    **cond: Tensor,
) -> Path:
    """One call x_0 = D(x, t, conditions) as an ONNX file: inputs `x` (n, *shape) float32, `t` (n,) float64, and the conditions.

    shape      of one sample of x
    batch      the only n that the file takes; any if None
    cond       example conditions, (2, ...) each (or (batch, ...)), whose names become the inputs' names
    tolerance  how much onnxruntime may differ, relative to the largest number, where it is installed

    Wrappers are part of the graph. Weights of more than 1 GiB lie in a file beside it. Raises FokkerError where the network
    cannot be exported, or the file does not give the same numbers.
    """
    n = _size(cond, batch)
    x = noise((n, *shape), seed=1)
    t = torch.linspace(0.4, 0.6, n, dtype=torch.float64)
    module = _Call(denoiser, list(cond))
    return _export(module, (x, t, list(cond.values())), ["x", "t", *cond], Path(path), batch, tolerance)


def plan_to_onnx(
    denoiser: Denoiser,
    plan: Plan,
    path: str | Path,
    shape: Sequence[int],
    *,
    batch: int | None = None,
    tolerance: float = 1e-4,
    **cond: Tensor,
) -> Path:
    """A whole run as one ONNX file: inputs `x` (n, *shape), the state at the plan's first time, and the conditions.

    The options are those of `to_onnx`. The plan must be deterministic, with one state and one time for all samples.
    """
    n = _size(cond, batch)
    x = denoiser.process.start(noise((n, *shape), seed=1))
    module = _Run(denoiser, plan, list(cond))
    return _export(module, (x, list(cond.values())), ["x", *cond], Path(path), batch, tolerance)


def _size(cond: dict[str, Tensor], batch: int | None) -> int:
    n = 2 if batch is None else batch
    for name, value in cond.items():
        if not isinstance(value, Tensor) or not value.ndim or len(value) != n:
            raise FokkerError(
                f"give the condition {name!r} as a tensor of {n} rows, an example of what the file will take"
            )
    return n


def _export(
    module: nn.Module, given: tuple[Any, ...], names: list[str], path: Path, batch: int | None, tolerance: float
) -> Path:
    if path.suffix != ".onnx":
        raise FokkerError(f"{str(path)!r} does not end in .onnx; give the name of the file to write")
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise FokkerError(
            "ONNX files need onnx and onnxscript; install them with pip install onnx onnxscript"
        ) from None
    module = copy.copy(module).eval()
    heavy = sum(p.numel() * p.element_size() for p in module.parameters()) > LARGEST
    shapes = None
    if batch is None:
        n = torch.export.Dim("n", min=1)
        shapes = tuple([{0: n} for _ in value] if isinstance(value, list) else {0: n} for value in given)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.tmp.onnx")
    try:
        with torch.no_grad():
            program = torch.export.export(module, given, dynamic_shapes=shapes)
            made: Any = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["x0"], verbose=False)
        made.save(path if heavy else temporary, external_data=heavy)
    except FokkerError:
        raise
    except Exception as error:  # the exporters raise many kinds; the user needs one sentence
        said = " ".join(str(error).split())[:200]
        hint = "give batch= for a file of one batch size" if batch is None else "the network does what ONNX cannot say"
        raise FokkerError(f"this network was not exported ({type(error).__name__}: {said}); {hint}") from error
    try:
        _same(module, given, names, path if heavy else temporary, batch, tolerance)
    except FokkerError:
        os.unlink(path if heavy else temporary)
        raise
    if not heavy:
        replace(temporary, path)
    return path


def _same(
    module: nn.Module, given: tuple[Any, ...], names: list[str], path: Path, batch: int | None, tolerance: float
) -> None:
    """FokkerError unless onnxruntime, where it is installed, gives the module's numbers; also for another batch size."""
    try:
        import onnxruntime
    except ImportError:
        return
    if batch is None:

        def more(value: Any) -> Any:
            return [more(v) for v in value] if isinstance(value, list) else torch.cat([value, value[:1]])

        given = tuple(more(value) for value in given)
    flat = [v for value in given for v in (value if isinstance(value, list) else [value])]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    found = torch.from_numpy(session.run(None, {k: v.numpy() for k, v in zip(names, flat) if k in taken})[0])
    with torch.no_grad():
        wanted: Tensor = module(*given)
    off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not off <= tolerance:
        raise FokkerError(
            f"the file differs from the network by {off:.1e} of its largest number, above {tolerance:g}; not kept"
        )
