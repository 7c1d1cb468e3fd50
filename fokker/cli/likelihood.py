"""`fokker likelihood`: how probable data are under a model, or under a law whose density is known."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import choose, job
from fokker.cli.terminal import Progress, print_json
from fokker.errors import FokkerError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from fokker.likelihood import Density

DEQUANTISE = ("auto", "truncated-normal", "uniform", "none")


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker likelihood --model digits -n 200")(likelihood)


def likelihood(
    model: Annotated[str | None, typer.Option(help="A model of the zoo, or the path of one.")] = None,
    law: Annotated[str | None, typer.Option(help="A law, such as ring, in place of a model: its own samples.")] = None,
    process: Annotated[str | None, typer.Option(help="The process of a law: vp, edm, flow, ...")] = None,
    data: Annotated[str | None, typer.Option(help="Data of a model; unless given, the test split of its own.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=2, max=100_000, help="Items, from the first on.")] = 100,
    given: Annotated[bool, typer.Option("--given", help="Given each item's own conditions: p(x | c), not p(x).")] = False,
    dequantise: Annotated[str, typer.Option(help="auto, truncated-normal, uniform or none.")] = "auto",
    bin: Annotated[float | None, typer.Option(help="Distance of neighbouring levels; found in the data if left out.")] = None,
    probes: Annotated[int, typer.Option(min=1, max=10_000, help="Hutchinson's probes an item, above 32 numbers.")] = 4,
    exact: Annotated[bool, typer.Option("--exact", help="The exact divergence, whatever the size.")] = False,
    tolerance: Annotated[float, typer.Option(min=1e-12, max=0.1, help="Of the adaptive integrator.")] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, help="Of the probes and of the dequantisation.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Items a call.")] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write log p of every item here, as .npz or .safetensors.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure log p of data by the probability-flow ODE, in nats and in bits a dimension, with standard errors."""
    from fokker.likelihood import FlowLikelihood

    if (law is None) == (model is None):
        raise FokkerError("give either --law or --model")
    if dequantise not in DEQUANTISE:
        raise unknown("--dequantise", dequantise, DEQUANTISE)
    _writable(out)
    how = FlowLikelihood("exact" if exact else "auto", probes, rtol=tolerance, atol=tolerance)
    options: dict[str, Any] = {"n": n, "given": given, "dequantise": dequantise, "bin": bin, "probes": probes}
    options |= {"exact": exact, "tolerance": tolerance, "seed": seed, "batch": batch, "device": job.device_of(device)}
    if law is not None:
        if data is not None or given or bin is not None:
            raise FokkerError("a law is measured on its own samples; leave out --data, --given and --bin")
        found, each = _of_law(law, "vp" if process is None else process, how, options)
    else:
        if process is not None:
            raise FokkerError("a model has its own process; leave out --process")
        found, each = _of_model(str(model), data, how, options)
    if out is not None:
        from fokker.cli import picture, provenance

        picture.save_numbers(out, each, provenance.record("likelihood", {"model": model, "law": law, **options}, **found))
        found["out"] = str(out)
    if json:
        print_json(found)
        return
    typer.echo(_sentence(found))


def _writable(out: Path | None) -> None:
    if out is None:
        return
    from fokker.cli import provenance

    provenance.check_suffix(out)
    if out.suffix.lower() == ".png":
        raise FokkerError("--out takes numbers here; use .npz or .safetensors")


def _of_law(law: str, process: str, how: Any, options: dict[str, Any]) -> tuple[dict[str, Any], "Tensor"]:
    exact = choose.law(law)
    denoiser = exact.denoiser(choose.process(process))
    x = exact.sample(options["n"], seed=options["seed"])

    def measure(i: slice) -> "Density":
        found: Density = how(denoiser, x[i], seed=options["seed"], ids=list(range(i.start, i.stop)))
        return found

    each, error, nfe, count = _together(_parts(measure, options))
    found = _summary(each, error, x[0].numel(), None) | {"of": law, "process": process, "nfe": nfe, "probes": count}
    if not exact.singular:
        true = exact.log_prob(x)
        found |= {"true_nats": -float(true.mean()), "mean_error": float((each - true).abs().mean())}
    return found, each


def _of_model(model: str, data: str | None, how: Any, options: dict[str, Any]) -> tuple[dict[str, Any], "Tensor"]:
    from fokker import model as models
    from fokker.likelihood import Lattice

    path = models.locate(model)
    loaded = models.load(path, options["device"])
    if loaded.process.anchored:
        raise FokkerError(f"{model!r} restores an observation; its likelihood has a meaning only given one, from Python")
    if options["bin"] is not None and options["dequantise"] == "none":
        raise FokkerError("--bin has no effect with --dequantise none; leave one of them out")
    source, name = _data(loaded, model, data)
    n = min(options["n"], len(source))
    items = source.batch(range(n))
    if tuple(items["x"].shape[1:]) != loaded.shape:
        raise FokkerError(f"{name} has items of shape {tuple(items['x'].shape[1:])}, model {model!r} takes {loaded.shape}")
    x = loaded.codec.encode(items["x"].to(options["device"]))
    cond = {k: items[k].to(options["device"]) for k in loaded.conditions if k in items} if options["given"] else {}
    if options["given"] and not cond:
        raise FokkerError(f"model {model!r} and {name} share no condition; leave out --given")
    same = loaded.codec.encode(items["x"][:1]).shape == items["x"][:1].shape and type(loaded.codec).__name__ == "Identity"
    # a codec's space has no lattice
    wanted, gap = options["dequantise"], options["bin"] or (Lattice.of(items["x"]) if same else None)
    if wanted in ("uniform", "truncated-normal") and gap is None:
        raise FokkerError(f"--dequantise {wanted}: {name} is on no lattice; give --bin, or --dequantise none")
    lattice = Lattice(gap, "truncated-normal" if wanted == "auto" else wanted) if gap and wanted != "none" else None

    def measure(i: slice) -> "Density":
        here = {k: v[i] for k, v in cond.items()}
        where = {"seed": options["seed"], "ids": list(range(i.start, i.stop))}
        if lattice is not None:
            return lattice.bound(loaded.denoiser, x[i], how, **where, **here)
        found: Density = how(loaded.denoiser, x[i], **where, **here)
        return found

    each, error, nfe, count = _together(_parts(measure, {**options, "n": n}))
    found = _summary(each, error, x[0].numel(), gap if lattice else None)
    found |= {"of": model, "data": name, "n": n, "nfe": nfe, "probes": count}
    return found | {"dequantise": lattice.how if lattice else "none", "bin": gap if lattice else None}, each


def _data(loaded: Any, model: str, data: str | None) -> tuple[Any, str]:
    """The source to measure on, and its name."""
    from fokker.data import open as open_data

    if data is not None:
        return open_data(data), data
    recipe = loaded.card.get("trained", {}).get("recipe", {})
    own = dict(recipe.get("data") or {})
    name = str(own.pop("source", ""))
    if not name:
        raise FokkerError(f"model {model!r} does not say what it was trained on; give --data")
    if name.startswith("toy:"):
        return open_data(name, **{**own, "split": "test"}), f"{name} (test)"
    return open_data(name, **own), name


def _parts(measure: Any, options: dict[str, Any]) -> "list[Density]":
    n, batch, found = options["n"], options["batch"], []
    with Progress("integrating") as bar:
        for first in range(0, n, batch):
            found.append(measure(slice(first, min(first + batch, n))))
            bar.update(min(first + batch, n), n)
    return found


def _together(parts: "list[Density]") -> tuple[Any, Any, float, int]:
    import torch

    each = torch.cat([p.log_prob.cpu() for p in parts])
    error = torch.cat([p.error.cpu() for p in parts])
    return each, error, sum(p.nfe * len(p.log_prob) for p in parts) / len(each), parts[0].probes


def _summary(each: Any, error: Any, dim: int, bin: float | None) -> dict[str, Any]:
    """Means with the standard error of the mean over items, in which that of the probes is contained."""
    nats, spread = -float(each.mean()), float(each.std()) / math.sqrt(len(each))
    bits = 1 / (dim * math.log(2))
    probes = float(error.square().mean().sqrt()) / math.sqrt(len(each))
    return {
        "nats": nats,
        "nats_error": spread,
        "bits_per_dim": nats * bits,
        "bits_per_dim_error": spread * bits,
        "error_from_probes": probes if math.isfinite(probes) else None,
        "discrete": bin is not None,
        "dim": dim,
        "n": len(each),
    }


def _sentence(found: dict[str, Any]) -> str:
    what = "code length of the discrete data, an upper bound" if found["discrete"] else "negative log-density"
    on = f" on {found['n']} items of {found['data']}" if "data" in found else f" on {found['n']} of its samples"
    text = (
        f"{found['of']}{on}: {found['bits_per_dim']:.4f} +- {found['bits_per_dim_error']:.4f} bits/dim, "
        f"{found['nats']:.3f} +- {found['nats_error']:.3f} nats an item ({what}; {found['nfe']:.0f} evaluations each)"
    )
    if "true_nats" in found:
        text += f"\nthe law's own density: {found['true_nats']:.3f} nats; mean error of an item {found['mean_error']:.1e}"
    return text
