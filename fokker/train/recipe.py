"""From a recipe to a trained model in a folder: what `fokker train` does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fokker import store
from fokker.data import open as open_data
from fokker.data.degraded import degraded
from fokker.data.source import Source
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError, unknown
from fokker.model import Model, build_net, build_process
from fokker.process import Process
from fokker.train.config import Pictures, Recipe, difference, load_recipe
from fokker.train.report import say
from fokker.train.state import Checkpoints
from fokker.train.trainer import Every, Trainer

DIRECT = ("label", "image", "y")


def main(config_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train by the recipe in a YAML file, resuming if its folder holds a run; returns the path of model.safetensors.

    `overrides` are `key=value` with dotted keys. Raises FokkerError for anything that is not right, before the first update.
    """
    recipe = load_recipe(config_path, overrides)
    train(recipe)
    return Path(recipe.out) / "model.safetensors"


def train(recipe: Recipe, callbacks: Sequence[Every] = (), quiet: bool = False) -> Model:
    """Train by a recipe; the model holds the averaged weights and is also in `recipe.out` as model.safetensors.

    The folder gets checkpoints/, log.jsonl, and as asked pictures/ and TensorBoard events.
    """
    source = data_of(recipe)
    model = assemble(recipe, source)
    trajectory = recipe.trajectory() | {"fingerprint": source.fingerprint}
    _same_run(recipe, trajectory)
    every = [*callbacks]
    if recipe.log.pictures.every:
        every.append(Every(recipe.log.pictures.every, pictures(recipe.log.pictures, model, Path(recipe.out))))
    trainer = Trainer(
        model.denoiser,
        source,
        recipe.objective,
        samples=recipe.samples,
        batch=recipe.batch,
        rate=recipe.rate,
        optimiser=recipe.optimiser,
        average=recipe.average,
        seed=recipe.seed,
        conditions=tuple(model.conditions),
        out=recipe.out,
        every=recipe.checkpoint.every,
        keep=recipe.checkpoint.keep,
        log_every=recipe.log.every,
        tensorboard=recipe.log.tensorboard,
        precision=recipe.precision,
        compile=recipe.compile,
        accumulate=recipe.accumulate,
        sharded=recipe.sharded,
        patience=recipe.patience,
        callbacks=every,
        header={"recipe": trajectory},
        cpu=recipe.cpu,
        quiet=quiet,
    )
    state = trainer.run()
    averaged = assemble(recipe, source)
    averaged.denoiser.load_state_dict(trainer.averaged())
    averaged.denoiser.eval()
    trained = {"samples": state.samples, "parameters": model.parameters, "weights": "average", "recipe": trajectory}
    averaged.card = {**recipe.card, "trained": trained}
    if trainer.accelerator.is_main_process:
        path = averaged.save(Path(recipe.out) / "model.safetensors", recipe.store)
        if not quiet:
            say(f"{state.samples} samples seen, {model.parameters} parameters: {path}")
    trainer.accelerator.wait_for_everyone()
    return averaged


def data_of(recipe: Recipe) -> Source:
    """The recipe's data set, beside its measurements where `data.degrade` names an operator."""
    options = dict(recipe.data)
    degrade = options.pop("degrade", None)
    source = options.pop("source", None)
    if not isinstance(source, str):
        raise FokkerError("data.source is missing; give a data set such as toy:digits or a path")
    found = open_data(source, **options)
    if degrade is None:
        return found
    if not isinstance(degrade, dict):
        raise FokkerError(f"data.degrade={degrade!r} is not understood; write it as {{operator: downsample, factor: 2}}")
    return degraded(found, degrade)


def assemble(recipe: Recipe, source: Source) -> Model:
    """The recipe's untrained model for a data set."""
    process = build_process(recipe.process)
    conditions = _conditions(recipe, source, process)
    net = _fit(recipe.net, source, conditions, process)
    tokens = {k: list(source.conditions[k]) for k in conditions if k not in DIRECT}
    conditioner = {"width": net["tokens"], "conditions": tokens} if tokens else None
    sigma_data = measured_std(source) if recipe.sigma_data is None else recipe.sigma_data
    denoiser = NetworkDenoiser(build_net(net, conditioner, recipe.seed), process, recipe.prediction, sigma_data)
    known = {k: source.conditions[k] for k in conditions}
    return Model(denoiser, source.shape, source.bounds, known)


def measured_std(source: Source, most: int = 4096) -> float:
    """The standard deviation of the data about their mean, over at most `most` evenly spaced items, to four digits."""
    n = len(source)
    picked = [i * n // min(n, most) for i in range(min(n, most))]
    x = source.batch(picked)["x"].to(torch.float64)
    return float(f"{(x - x.mean()).square().mean().sqrt().item():.4g}")


def _conditions(recipe: Recipe, source: Source, process: Process) -> tuple[str, ...]:
    chosen = recipe.conditions
    if chosen is None:
        chosen = ("label",) if source.classes else ()
        chosen += ("y",) if process.anchored else ()
    for name in chosen:
        if name not in source.conditions:
            raise unknown("condition of the data", name, source.conditions)
    if process.anchored and "y" not in chosen:
        raise FokkerError(f"{process.name} is anchored on an observation; add y to conditions, from data that have it")
    return tuple(chosen)


def _fit(given: dict[str, Any], source: Source, conditions: tuple[str, ...], process: Process) -> dict[str, Any]:
    """The network's configuration with what follows from the data filled in; raises FokkerError where it says otherwise."""
    from fokker.net import PRESETS

    net = dict(given)
    preset = net.pop("preset", None)
    if preset is not None:
        if preset not in PRESETS:
            raise unknown("network preset", preset, PRESETS)
        net = {**{k: v for k, v in PRESETS[preset].items() if k not in ("classes", "channels", "dim")}, **net}
    image = [source.conditions[k].shape[0] for k in ("image", "y") if k in conditions]
    wanted: dict[str, Any] = {"dim": len(source.shape) - 1, "channels": source.shape[0]}
    wanted["classes"] = len(source.classes) if "label" in conditions else 0
    wanted["image_channels"] = sum(image)
    for key, value in wanted.items():
        if net.setdefault(key, value) != value:
            raise FokkerError(f"net.{key}={net[key]}, but the data and conditions make it {value}; leave it out")
    if any(k not in DIRECT for k in conditions):
        net.setdefault("tokens", 64)
    elif net.get("tokens"):
        raise FokkerError("net.tokens is set, but no condition becomes tokens; name one in conditions or leave it out")
    return net


def _same_run(recipe: Recipe, trajectory: dict[str, Any]) -> None:
    """Refuse to go on with another recipe than a run was begun with."""
    path, _ = Checkpoints(Path(recipe.out) / "checkpoints").newest()
    if path is None:
        if recipe.resume == "must":
            raise FokkerError(f"resume=must, but {recipe.out} holds no whole checkpoint; check out, or use resume=same")
        return
    changed = difference(store.read_header(path).get("recipe"), trajectory)
    if changed and recipe.resume != "changed":
        raise FokkerError(
            f"{recipe.out} holds a run of another recipe ({changed}); choose another out, or go on with resume=changed"
        )


def pictures(settings: Pictures, model: Model, out: Path) -> Callable[[Trainer], None]:
    """An action that samples a grid with the averaged weights into out/pictures/SAMPLES.png, the same noise each time."""

    def action(trainer: Trainer) -> None:
        from PIL import Image

        from fokker.cli.picture import tile
        from fokker.keyed import noise
        from fokker.loop import sample

        device = trainer.accelerator.device
        process = model.process
        shown = trainer.source.batch(torch.arange(settings.n) % len(trainer.source))
        cond: dict[str, Any] = {k: shown[k].to(device) for k in model.conditions}
        if model.labels:
            cond["label"] = torch.arange(settings.n, device=device) % len(model.labels)
        start = process.start(noise((settings.n, *model.shape), seed=0).to(device), cond.get("y"))
        with trainer.ema.swapped(), torch.no_grad():
            x = sample(model.denoiser, start, solver=settings.solver, steps=settings.steps, **cond)
        if not trainer.accelerator.is_main_process:
            return
        page = tile(model.decode(x))
        path = out / "pictures" / f"{trainer.state.samples:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page).save(path)

    return action
