"""A data set in a codec's space, and a model that is trained there."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.codec import Codec
from fokker.conditioner import DIRECT
from fokker.data.source import Arrays, Condition, Indices, Source
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise
from fokker.latent.kl import KLAutoencoder
from fokker.measure.features import digest
from fokker.model import Model, build_net
from fokker.process import VP, Process


class Encoded(Source):
    """Every item of a source as x = codec.encode(item), with the source's own label and conditions.

    Encoded when fetched, without gradients; `in_memory()` encodes all of them once. With `drawn` an item is a draw of the
    posterior of a `KLAutoencoder`, from the noise of the item's number, so that a latent is drawn once, whoever asks.
    `beside` is the name of one more condition: the item itself, as the source has it.
    """

    def __init__(
        self, source: Source, codec: Codec, drawn: bool = False, seed: int = 0, beside: str | None = None
    ) -> None:
        if drawn and not isinstance(codec, KLAutoencoder):
            raise FokkerError(f"{type(codec).__name__} has no posterior to draw from; leave out drawn=True")
        self.source, self.codec, self.drawn, self.seed = source, codec, drawn, seed
        self.name, self.about, self.bounds = f"{source.name}, encoded", source.about, None
        self.classes, self.vocabulary, self.texts = source.classes, source.vocabulary, source.texts
        self.skipped, self.conditions, self.beside = source.skipped, dict(source.conditions), beside
        self.shards = source.shards
        if beside is not None:
            if beside == "x" or beside in source.conditions:
                raise FokkerError(f"the data have {beside!r} already; give beside= another name")
            self.conditions[beside] = Condition(tuple(source.shape), False)
        self.shape = tuple(self.encoded(source.batch([0])["x"], [0]).shape[1:])

    @torch.no_grad()
    def encoded(self, data: Tensor, ids: Sequence[int] | Tensor) -> Tensor:
        """Items (n, ...) whose numbers are `ids` in the codec's space, on the CPU."""
        here = next((p.device for p in (*self.codec.parameters(), *self.codec.buffers())), data.device)
        there = data.to(here)
        if not self.drawn:
            return self.codec.encode(there).cpu()
        assert isinstance(self.codec, KLAutoencoder)
        mean, _ = self.codec.posterior(there[:1])
        shape = (len(data), *mean.shape[1:])
        eps = noise(shape, self.seed, ids, stream="data", index=2).to(mean)
        return self.codec.draw(there, eps).cpu()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        index = torch.as_tensor(list(indices) if isinstance(indices, range) else indices)
        whole = self.source.batch(index)
        item = {} if self.beside is None else {self.beside: whole["x"]}
        return {**whole, **item, "x": self.encoded(whole["x"], index)}

    def in_memory(self, chunk: int = 256) -> Arrays:
        """All items, encoded once: what a small data set is trained from."""
        parts = [self.batch(range(i, min(i + chunk, len(self)))) for i in range(0, len(self), chunk)]
        tensors = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        names = {k: c.names for k, c in self.conditions.items() if k != "label"}
        return Arrays(tensors, self.name, self.about, self.classes, names, self.vocabulary, self.texts, None)

    @property
    def fingerprint(self) -> str:
        weights = digest(*self.codec.state_dict().values()) if self.codec.state_dict() else ""
        text = f"{self.source.fingerprint} {self.codec.config} {weights} {self.drawn} {self.seed}"
        text += "" if self.beside is None else f" {self.beside}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def latent_model(
    codec: Codec,
    source: Source,
    net: Mapping[str, Any],
    process: Process | None = None,
    prediction: str = "edm",
    conditions: Sequence[str] | None = None,
    seed: int = 0,
) -> Model:
    """An untrained model of `source` in the codec's space: train `model.denoiser` on `Encoded(source, codec)`.

    `net` is the network's configuration; channels, dimension and classes follow from the codec and the data. `conditions`
    are those of the data that it is given (default: label, if there are classes). The process (default VP) sees latents of
    unit variance. The saved model carries the codec; its samples decode.
    """
    chosen = tuple(conditions) if conditions is not None else (("label",) if source.classes else ())
    for name in chosen:
        if name not in source.conditions:
            raise unknown("condition of the data", name, source.conditions)
        if name in ("image", "y"):
            raise FokkerError(
                f"the condition {name!r} is a picture in the data's space, not the codec's; encode it first"
            )
    codec.eval()
    with torch.no_grad():
        x_shape = codec.encode(source.batch([0])["x"]).shape[1:]
    known = {k: source.conditions[k] for k in chosen}
    tokens = {k: list(c) for k, c in known.items() if k not in DIRECT}
    # a code is a vector, for which there is the multilayer perceptron
    flat = {"kind": "mlp", **net, "dim": x_shape[0]}
    config = flat if len(x_shape) == 1 else {**net, "dim": len(x_shape) - 1, "channels": x_shape[0]}
    config["classes"] = len(source.classes) if "label" in chosen else 0
    if tokens:
        config.setdefault("tokens", 64)
    conditioner = {"width": config["tokens"], "conditions": tokens} if tokens else None
    denoiser = NetworkDenoiser(build_net(config, conditioner, seed), process or VP(), prediction, 1.0)
    return Model(denoiser, source.shape, source.bounds, known, codec)
