"""Measures a trained model against held-out data and writes the numbers on its card.

    python bench/zoo.py runs/sprites/model.safetensors --out fokker/zoo/sprites.safetensors

The card gets: the distance of samples to held-out data beside that of training data to the same, precision and
recall, the share of memorised samples beside that of held-out data, the denoising error on held-out data at three noise levels,
and, for models with a colour condition, how often the sample's colour is the one asked for.
"""

import argparse
import platform
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker import data, measure
from fokker.data.source import Arrays
from fokker.model import Model

STEPS, SOLVER, GRID = 18, "dpmpp-2m", "karras"


def draw(model: Model, n: int, seed: int, **cond: Tensor) -> Tensor:
    """n samples in chunks, each sample with its own noise."""
    parts = []
    for ids in torch.arange(n).split(128):
        x1 = model.process.start(fk.noise((len(ids), *model.shape), seed=seed, ids=ids))
        given = {k: v[ids] for k, v in cond.items()}
        parts.append(fk.sample(model.denoiser, x1, solver=SOLVER, steps=STEPS, grid=GRID, end=0, **given))
    return torch.cat(parts)


def denoising(model: Model, x: Tensor) -> dict[str, float]:
    """Mean squared error of the belief over the data's variance, without conditions, at three levels of sigma."""
    eps = fk.noise(tuple(x.shape), seed=1, stream="measure")
    out = {}
    for sigma in (0.1, 0.5, 2.0):
        t = float(model.process.time(-2 * torch.tensor(sigma, dtype=torch.float64).log()))
        with torch.no_grad():
            belief = torch.cat(
                [model.denoiser(p, t) for p in model.process.add_noise(x, eps, t).split(256)]
            )
        out[f"sigma {sigma:g}"] = float((belief - x).square().mean() / x.var())
    return out


def colours(model: Model, n: int) -> dict[str, float]:
    """How often the hue of a sample is the one that was asked for, by caption alone and by the colour alone."""
    names = model.conditions["colour"].names
    palette = {
        "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "magenta": (1, 0, 1),
        "cyan": (0, 1, 1), "orange": (1, 0.5, 0), "white": (1, 1, 1),
    }  # fmt: skip
    table = torch.nn.functional.normalize(torch.tensor([palette[c] for c in names], dtype=torch.float32), dim=1)
    asked = torch.arange(n) % len(names)

    def share(**cond: Tensor) -> float:
        pixels = (draw(model, n, 5, **cond) + 1).clamp_min(0)
        mean = pixels.flatten(2).sum(2)
        return float((torch.nn.functional.normalize(mean, dim=1) @ table.T).argmax(1).eq(asked).float().mean())

    words = model.conditions["tokens"].names
    captions = torch.zeros(n, *model.conditions["tokens"].shape, dtype=torch.int64)
    for i, k in enumerate(asked.tolist()):
        caption = ["large", names[k], "circle", "middle", "centre"]
        captions[i, : len(caption)] = torch.tensor([words.index(w) for w in caption])
    return {"colour given": share(colour=asked), "caption given": share(tokens=captions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("-n", type=int, default=1024)
    options = parser.parse_args()
    model = fk.load(options.model)
    how = dict(model.card["trained"]["recipe"]["data"])
    name = how.pop("source").removeprefix("toy:")
    if "n" in how:
        how["n"] = options.n
    train, test = (data.toy(name, split=s, **how) for s in ("train", "test"))
    assert isinstance(train, Arrays) and isinstance(test, Arrays)
    samples = draw(model, options.n, seed=0)
    # the covariance of more pixels than samples says little
    distance = measure.Frechet() if samples[0].numel() < options.n else measure.SlicedWasserstein()
    values = {
        distance.name: distance(samples, test.x).value,
        f"{distance.name} of training data": distance(train.x, test.x).value,
        "precision": measure.Precision()(samples, test.x).value,
        "recall": measure.Recall()(samples, test.x).value,
        "memorised": measure.Memorised()(samples, train.x).value,
        "memorised, held-out data": measure.Memorised()(test.x, train.x).value,
    }
    card: dict[str, Any] = {
        "values": values,
        "denoising error, held out": denoising(model, test.x[:512]),
        "sampled with": f"{SOLVER}, {STEPS} steps, {GRID} grid, to x_0",
        "n": options.n,
        "features": "pixels",
        "machine": f"{platform.machine()}, torch {torch.__version__}, CPU",
        "command": f"python bench/zoo.py runs/{name}/model.safetensors --out {options.out}",
    }
    if "colour" in model.conditions:
        card["obeyed, of 512"] = colours(model, 512)
    model.card = model.card | {"measured": model.card.get("measured", {}) | card}
    model.save(options.out, "float16")
    for key, value in card.items():
        print(key, value)


if __name__ == "__main__":
    main()
