"""A model of text in one file: network, process, vocabulary, and what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker import store
from fokker.discrete.denoiser import TokenDenoiser
from fokker.discrete.net import TokenTransformer
from fokker.discrete.process import TokenProcess
from fokker.errors import FokkerError, unknown
from fokker.keyed import sample_ids
from fokker.loop import Trace, run
from fokker.model import STORED
from fokker.plan import Plan

FORMAT = "fokker tokens 1"
BLANK = "_"


@dataclass
class TokenModel:
    """A `TokenDenoiser` that knows its vocabulary: names of the tokens in order, and the length that it was trained at."""

    denoiser: TokenDenoiser
    vocabulary: tuple[str, ...]
    length: int
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def process(self) -> TokenProcess:
        return self.denoiser.corruption

    def encode(self, text: str, length: int | None = None) -> Tensor:
        """The ids of a text of single-character tokens, `_` for a blank to fill; padded with blanks to `length`.

        Raises FokkerError for a character that the vocabulary does not have or a text that is too long.
        """
        length = self.length if length is None else length
        if len(text) > length:
            raise FokkerError(f"the text has {len(text)} characters and there are {length} places; raise the length")
        places = {name: k for k, name in enumerate(self.vocabulary)} | {BLANK: self.process.mask}
        for character in text:
            if character not in places:
                accepted = "".join(v for v in self.vocabulary)
                raise FokkerError(
                    f"this model has no {character!r}; it writes {accepted!r}, and {BLANK!r} is a blank to fill"
                )
        return torch.tensor([places[c] for c in text.ljust(length, BLANK)], dtype=torch.int64)

    def decode(self, x: Tensor) -> list[str]:
        """Sequences of ids (n, length) as text, masks as `_`."""
        names = (*self.vocabulary, BLANK)
        return ["".join(names[k] for k in row) for row in x.tolist()]

    def write(
        self, n: int = 1, text: str = "", plan: Plan | None = None, seed: int = 0, ids: Sequence[int] | None = None
    ) -> list[str]:
        """n texts, with the blanks of `text` filled in; by first hitting, a token a call, unless a plan says otherwise."""
        return self.decode(self.run(n, text, plan, seed, ids).x0)

    def run(
        self, n: int = 1, text: str = "", plan: Plan | None = None, seed: int = 0, ids: Sequence[int] | None = None
    ) -> Trace:
        """What `write` runs, with its count of calls."""
        from fokker.discrete.solve import FirstHitting

        start = self.encode(text).expand(n, -1)
        blanks = max(1, int((start[0] == self.process.mask).sum()))
        if plan is None:
            plan = FirstHitting().plan(self.process, blanks)
        return run(self.denoiser, start, plan, seed=seed, ids=None if ids is None else sample_ids(n, ids))

    def save(self, path: str | Path, stored: str = "float32") -> Path:
        """Write one file, whole or not at all."""
        if stored not in STORED:
            raise unknown("number format", stored, STORED)
        if not isinstance(self.denoiser.net, TokenTransformer):
            raise FokkerError(f"{type(self.denoiser.net).__name__} has no config; it cannot be rebuilt from a file")
        header = {
            "format": FORMAT,
            "net": self.denoiser.net.config,
            "process": {k: v for k, v in self.process.config.items() if k != "process"},
            "vocabulary": list(self.vocabulary),
            "length": self.length,
            "card": self.card,
        }
        store.write(path, {k: v.to(STORED[stored]) for k, v in self.denoiser.net.state_dict().items()}, header)
        return Path(path)


def _zoo() -> Path:
    return Path(str(files("fokker"))) / "zoo" / "tokens"


def load(name: str | Path) -> TokenModel:
    """A model of tokens: "text" of the zoo, or the path of a file; raises FokkerError for anything else."""
    path = Path(name)
    if path.suffix != ".safetensors":
        names = sorted(p.stem for p in _zoo().glob("*.safetensors"))
        if str(name) not in names:
            raise unknown("model of tokens", name, names)
        path = _zoo() / f"{name}.safetensors"
    tensors, header = store.read(path)
    if header.get("format") != FORMAT:
        raise FokkerError(f"{path} is a {header.get('format')!r}, not a {FORMAT!r}; load it with fk.load")
    net = TokenTransformer(**header["net"])
    store.check_fields(net.state_dict(), tensors, path)
    net.load_state_dict(tensors)
    denoiser = TokenDenoiser(net, TokenProcess(**header["process"]))
    return TokenModel(denoiser.eval(), tuple(header["vocabulary"]), int(header["length"]), header["card"])
