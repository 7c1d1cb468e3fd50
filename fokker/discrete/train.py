"""From a recipe to a model of tokens: `python -m fokker.discrete.train fokker/zoo/tokens/text.yaml`; run again to resume."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fokker.data import open as open_data
from fokker.discrete.denoiser import TokenDenoiser
from fokker.discrete.model import TokenModel
from fokker.discrete.net import TokenTransformer
from fokker.discrete.objective import TimeFree, TokenBound, bits_per_token
from fokker.discrete.process import TokenProcess
from fokker.errors import FokkerError, unknown
from fokker.train.ema import Average
from fokker.train.optimiser import Optimiser
from fokker.train.rate import Rate
from fokker.train.trainer import Trainer


@dataclass(frozen=True)
class TokenRecipe:
    """All that determines a training run on tokens; sections go to the classes of their names."""

    data: dict[str, Any]
    out: str
    samples: int
    batch: int = 64
    seed: int = 0
    net: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    rate: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    every: int = 16_000
    store: str = "float32"
    cpu: bool = False

    @classmethod
    def read(cls, path: str | Path) -> "TokenRecipe":
        """The recipe in a YAML file; unknown keys are refused with the nearest."""
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(tree, Mapping):
            raise FokkerError(f"{path} holds no recipe; write keys such as data, net, out and samples")
        for key in tree:
            if key not in names:
                raise unknown(f"key of {path}", key, names)
        return cls(**tree)


def train(recipe: TokenRecipe, quiet: bool = False) -> TokenModel:
    """Train, or go on from the newest checkpoint in `recipe.out`, and write model.safetensors there with averaged weights."""
    options = dict(recipe.data)
    name = options.pop("source")
    source, held_out = (open_data(name, **{**options, **more}) for more in ({}, {"split": "test", "n": 1024}))
    size, length = len(source.vocabulary), source.shape[0]
    process = TokenProcess(size, **recipe.process)
    timed = bool(process.replace)
    denoiser = TokenDenoiser(TokenTransformer(size, **{"timed": timed, "seed": recipe.seed, **recipe.net}), process)
    trainer = Trainer(
        denoiser,
        source,
        TokenBound() if timed else TimeFree(),
        samples=recipe.samples,
        batch=recipe.batch,
        rate=Rate(**recipe.rate),
        optimiser=Optimiser(**recipe.optimiser),
        average=Average(**recipe.average),
        seed=recipe.seed,
        out=recipe.out,
        every=recipe.every,
        keep=1,
        cpu=recipe.cpu,
        quiet=quiet,
    )
    trainer.run()
    with trainer.ema.swapped():
        denoiser.eval()
        card = {"recipe": dataclasses.asdict(recipe), "fingerprint": source.fingerprint}
        if not timed:
            bits, error = bits_per_token(
                denoiser, held_out.batch(range(len(held_out)))["x"].to(trainer.accelerator.device)
            )
            card["held out"] = {"bits a token, bound": round(bits, 4), "error": round(error, 4)}
        model = TokenModel(denoiser, source.vocabulary, length, card)
        model.save(Path(recipe.out) / "model.safetensors", recipe.store)
    return model


if __name__ == "__main__":
    print(train(TokenRecipe.read(sys.argv[1])).card)
