"""A model: denoiser, codec and conditions in one safetensors file that says how to rebuild itself."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fokker import batches, store
from fokker import codec as codecs
from fokker.codec import Codec, Identity
from fokker.conditioner import Conditioned, Conditioner, read
from fokker.data.source import Condition
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError, unknown
from fokker.options import check_types
from fokker.process import Process

FORMAT = "fokker model 1"
READ = (".json", ".safetensors", ".txt", ".model")  # what is read of a folder of diffusers
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HEADER = {
    "format", "net", "conditioner", "process", "prediction", "sigma_data", "shape", "bounds", "conditions", "codec", "card",
    "stored", "fields",
}  # fmt: skip


@dataclass
class Model:
    """A denoiser that knows its data.

    denoiser    a `NetworkDenoiser` whose network has a `config` that `fokker.net.build` takes
    shape       of one sample in the data's space, without the batch: (C, H, W) for images
    bounds      the interval that the data lie in, None where there is none
    conditions  what may be asked for, by name: shape, whether it is a category, its names (`fokker.data.Condition`)
    codec       between the denoiser's space and the data's
    card        what was measured and what was run: any JSON
    """

    denoiser: NetworkDenoiser
    shape: tuple[int, ...]
    bounds: tuple[float, float] | None = (-1.0, 1.0)
    conditions: dict[str, Condition] = field(default_factory=dict)
    codec: Codec = field(default_factory=Identity)
    card: dict[str, Any] = field(default_factory=dict)
    slim: bool = field(default=False, init=False)  # whether `save_memory` changed something

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; () if the model is not class-conditional."""
        return self.conditions["label"].names if "label" in self.conditions else ()

    @property
    def process(self) -> Process:
        """The denoiser's process."""
        return self.denoiser.process

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return sum(p.numel() for p in self.denoiser.parameters())

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one sample in the denoiser's space."""
        here = next(self.denoiser.parameters()).device
        with torch.no_grad():
            return tuple(self.codec.encode(torch.zeros(1, *self.shape, device=here)).shape[1:])

    def condition(self, n: int, **given: object) -> dict[str, Tensor]:
        """Conditions in words as tensors for n samples: `condition(8, label="3")`, `condition(2, tokens="red circle")`."""
        device = next(self.denoiser.parameters()).device
        return {k: v.to(device) for k, v in read(n, self.conditions, given).items()}

    def to(self, device: torch.device | str) -> Self:
        """Move denoiser and codec; returns the model."""
        self.denoiser.to(device)
        self.codec.to(device)
        return self

    def save_memory(self) -> bool:
        """Attention in slices and a codec in tiles from now on, where they can; whether that changed anything."""
        ways = (getattr(self.denoiser.net, "save_memory", None), self.codec.save_memory)
        changed = [way() for way in ways if way is not None]
        self.slim = self.slim or any(changed)
        return any(changed)

    @torch.no_grad()
    def decode(self, x: Tensor) -> NDArray[np.uint8]:
        """x in the denoiser's space (n, ...) as 8-bit images (n, H, W) or (n, H, W, C).

        Many are decoded in parts that fit into memory. Raises FokkerError if the data are not images in an interval.
        """
        if len(self.shape) != 3 or self.shape[0] not in (1, 3, 4) or self.bounds is None:
            raise FokkerError(f"data of shape {self.shape} are not images; use model.codec.decode(x) for the numbers")
        low, high = self.bounds
        device = next(self.denoiser.parameters()).device
        first = x[:1].to(device, copy=True)
        at_once = batches.size(lambda: self.codec.decode(first), device=device, smaller=self.save_memory)
        data = batches.over(
            len(x),
            at_once,
            lambda i, j: self.codec.decode(x[i:j].to(device)).to("cpu", torch.float32),
            self.save_memory,
        )
        pixels = ((data - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
        rows: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).numpy()
        return rows[..., 0] if self.shape[0] == 1 else rows

    def save(self, path: str | Path, stored: str = "float32") -> Path:
        """Write one file, whole or not at all; `stored` is the number format of the weights (float16 halves the file).

        Raises FokkerError if the denoiser cannot be rebuilt from a configuration or a weight does not fit the format.
        """
        if stored not in STORED:
            raise unknown("number format", stored, STORED)
        net, denoiser = self.denoiser.net, self.denoiser
        inner = net.net if isinstance(net, Conditioned) else net
        config = getattr(inner, "config", None)
        if not isinstance(config, Mapping) or denoiser.clock is not None:
            raise FokkerError(f"{type(inner).__name__} has no config, or the denoiser a clock of its own; it cannot be rebuilt")
        header = {
            "format": FORMAT,
            "net": dict(config),
            "conditioner": net.conditioner.config if isinstance(net, Conditioned) else None,
            "process": denoiser.process.config,
            "prediction": denoiser.prediction,
            "sigma_data": denoiser.sigma_data,
            "shape": list(self.shape),
            "bounds": list(self.bounds) if self.bounds else None,
            "conditions": {k: [list(c.shape), c.discrete, list(c.names)] for k, c in self.conditions.items()},
            "codec": self.codec.config,
            "card": self.card,
            "stored": stored,
        }
        tensors = {name: _narrow(name, value, STORED[stored]) for name, value in self._tensors().items()}
        store.write(path, tensors, header | {"fields": len(tensors)})
        return Path(path)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{part}.{k}": v for part, m in self._parts().items() for k, v in m.state_dict().items()}

    def _parts(self) -> dict[str, nn.Module]:
        return {"net": self.denoiser.net, "codec": self.codec}

    def copy(self) -> "Model":
        """An independent copy, weights included."""
        return copy.deepcopy(self)


def _narrow(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    narrow = value.to(dtype)
    if bool(torch.isfinite(value).all()) and not bool(torch.isfinite(narrow).all()):
        raise FokkerError(f"{name} has numbers beyond {dtype}; store the model as bfloat16 or float32")
    return narrow


def _zoo() -> Path:
    return Path(str(files("fokker"))) / "zoo"


def names() -> tuple[str, ...]:
    """The models of the embedded zoo."""
    return tuple(sorted(path.stem for path in _zoo().glob("*.safetensors")))


def locate(name: str | Path) -> Path:
    """The file of a zoo name or a path, or the folder of a pipeline of diffusers (also hf:ORG/NAME, which is fetched).

    Raises FokkerError with the near match if there is none.
    """
    if str(name).startswith("hf:"):
        from fokker.adapt.folder import locate as fetch

        return fetch(name)
    path = Path(name)
    if (path / "model_index.json").is_file():
        return path
    if path.suffix == ".safetensors" or path.exists():
        if path.is_dir():
            path = path / "model.safetensors"
        return path
    if str(name) not in names():
        raise unknown("model", name, names())
    return _zoo() / f"{name}.safetensors"


def load(name: str | Path, device: torch.device | str = "cpu", size: tuple[int, int] | None = None) -> Model:
    """A model of the embedded zoo by name, or from a path (a file, or the folder of a training run or of diffusers).

    `size` is (height, width) of its pictures, if not what it was made for. The weights are float32 and ready for evaluation.
    Raises FokkerError for an unknown name, an altered file, or one whose fields are not exactly those of the model that it
    describes.
    """
    path = locate(name)
    if path.is_dir():
        from fokker.adapt import from_diffusers

        found: Model = from_diffusers(path, device=device, size=size).model
        return found
    tensors, header = store.read(path)
    if header.get("format") != FORMAT or header.keys() != _HEADER:
        found = header.get("format", "file of another kind")
        raise FokkerError(f"{path} is a {found!r} with keys that a {FORMAT!r} does not have or lacks; convert it")
    conditions = {k: _condition(v) for k, v in header["conditions"].items()}
    net = build_net(header["net"], header["conditioner"])
    denoiser = NetworkDenoiser(net, build_process(header["process"]), header["prediction"], header["sigma_data"])
    bounds, shape = header["bounds"], tuple(header["shape"])
    if size is not None:
        if len(shape) != 3:
            raise FokkerError(f"{path} makes data of shape {shape}, not pictures; leave out the size")
        shape = (shape[0], *size)
    model = Model(
        denoiser,
        shape,
        (bounds[0], bounds[1]) if bounds else None,
        conditions,
        codecs.build(header["codec"]),
        header["card"],
    )
    store.check_fields(model._tensors(), tensors, path)
    for part, module in model._parts().items():
        prefix = f"{part}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        module.eval()
    denoiser.eval()
    return model.to(device)


def digest(path: str | Path) -> str:
    """SHA-256 of a model's file, or of what is read of a folder of diffusers."""
    path = Path(path)
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.suffix in READ]
    sha = hashlib.sha256()
    for file in files:
        if path.is_dir():
            sha.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 22):
                sha.update(chunk)
    return sha.hexdigest()


def _condition(entry: Any) -> Condition:
    shape, discrete, words = entry
    return Condition(tuple(shape), bool(discrete), tuple(words))


def build_net(config: Mapping[str, Any], conditioner: Mapping[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """A network from its configuration, behind a `Conditioner` from its own if conditions are to become tokens."""
    from fokker.net import build

    net = build({"seed": seed, **config})
    if conditioner is None:
        return net
    tokens = {k: _condition(v) for k, v in conditioner["conditions"].items()}
    return Conditioned(net, Conditioner(tokens, int(conditioner["width"]), seed))


def build_process(config: Mapping[str, Any]) -> Process:
    """A process from `Process.config`: {"process": class name, options}; raises FokkerError for an unknown name or option."""
    import dataclasses

    import fokker.anchored
    import fokker.electric  # noqa: F401  (their classes are found below)

    options = dict(config)
    name = str(options.pop("process", "EDM"))
    known = {kind.__name__: kind for kind in _kinds(Process)}
    match = [k for k in known if k.lower() == name.lower()]
    if not match:
        raise unknown("process", name, known)
    kind = known[match[0]]
    accepted = [f.name for f in dataclasses.fields(kind) if f.init]
    for key in options:
        if key not in accepted:
            raise unknown(f"option of {kind.__name__}", key, accepted)
    check_types(kind, kind.__name__, options)
    return kind(**options)


def _kinds(kind: type[Process]) -> list[type[Process]]:
    return [found for below in kind.__subclasses__() for found in (below, *_kinds(below))]
