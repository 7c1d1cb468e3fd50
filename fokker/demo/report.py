"""report.html: one file, pictures inside, what was run and how to run it again, every number beside its bar and its floor."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

STYLE = """
:root { color-scheme: light; --ink: #1f2430; --muted: #6b7280; --line: #e5e7eb; --good: #047857; --bad: #b45309; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.6 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.02em; }
h2 { font-size: 22px; margin: 56px 0 8px; letter-spacing: -0.01em; }
p { max-width: 46em; margin: 8px 0 16px; }
.lead, .note { color: var(--muted); }
.lead { font-size: 18px; }
.note { font-size: 14px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(178px, 1fr)); gap: 12px; margin: 28px 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 27px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { font-size: 13.5px; color: var(--muted); display: block; line-height: 1.45; }
figure { margin: 16px 0; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 8px; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; border: 1px solid var(--line); border-radius: 10px; width: 100%;
  font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 12px 0; }
th, td { padding: 7px 12px; border-top: 1px solid var(--line); text-align: right; vertical-align: top; }
th { border-top: 0; color: var(--muted); font-weight: 600; }
th:first-child, td:first-child, .words { text-align: left; }
.met { color: var(--good); font-weight: 600; white-space: nowrap; }
.missed { color: var(--bad); font-weight: 600; white-space: nowrap; }
.confusion { width: auto; } .confusion td, .confusion th { text-align: center; min-width: 42px; padding: 4px 8px; }
pre { background: #1f2430; color: #e5e7eb; border-radius: 10px; padding: 14px 18px; overflow-x: auto; font-size: 13.5px;
  line-height: 1.55; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--muted); }
"""


_NAMES = {
    "frechet": "Fréchet distance to all digits",
    "frechet_held_out": "Fréchet distance to held-out digits",
    "frechet_train_held_out": "the same, of the training digits",
    "memorised": "memorised, unguided",
    "memorised_guided": "memorised, guided",
    "class_accuracy": "class accuracy, guided",
}


def page(found: Mapping[str, Any], confusion: Tensor, out: Path) -> str:
    """The report on the numbers `found` and the pictures in `out`."""
    body = "\n".join(
        [
            _head(found),
            _bars(found),
            _training(found, out),
            _samples(found, out),
            _solvers(found, out),
            _restoration(found, out),
            _classification(found, confusion),
            _again(found, out),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>fokker: a diffusion model of digits</title>'
        f"<style>{STYLE}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def _head(found: Mapping[str, Any]) -> str:
    training, seconds, machine = found["training"], found["seconds"], found["machine"]
    mask, blur = found["restoration"]["mask"], found["restoration"]["blur"]
    cards = [
        (f"{found['class_accuracy']:.1%}", "of guided samples look like their class to a linear classifier"),
        (f"{found['frechet_over_floor']:.2f} × floor", "Fréchet distance of unguided samples to the data"),
        (f"{found['precision']:.2f} / {found['recall']:.2f}", "precision / recall, three neighbours"),
        (f"+{mask['psnr'] - mask['psnr_measured']:.1f} dB", "on masked held-out digits, over the input"),
        (f"+{blur['psnr'] - blur['psnr_measured']:.1f} dB", "on blurred held-out digits, over the input"),
        (f"{found['classification']['accuracy']:.1%}", "of held-out digits classified by the denoiser"),
    ]
    shown = "".join(f'<div class="card"><b>{html.escape(n)}</b><span>{html.escape(t)}</span></div>' for n, t in cards)
    return (
        "<h1>A diffusion model of handwritten digits</h1>"
        f'<p class="lead">Trained from nothing in {seconds["train"]:.0f} seconds on {html.escape(machine["processor"])} '
        f"({_threads(machine)}): {training['parameters']:,} parameters, {training['samples']:,} training samples. "
        "It was then asked to draw digits, to restore damaged ones it had never seen, and to read them. "
        f"All of it took {seconds['total']:.0f} seconds.</p>"
        f'<div class="cards">{shown}</div>'
    )


def _bars(found: Mapping[str, Any]) -> str:
    rows = [
        [
            html.escape(e["name"]),
            f"{e['value']:.3f}",
            f"{'≥' if e['relation'] == '>=' else '≤'} {e['bar']:.3g}",
            f'<span class="{"met" if e["met"] else "missed"}">{"✓ met" if e["met"] else "✗ missed"}</span>',
            f'<span class="note">{html.escape(e["about"])}</span>',
        ]
        for e in found["expectations"]
    ]
    return "<h2>What was expected, and what was measured</h2>" + _table(
        ["number", "measured", "bar", "", "what it says"], rows, words=(0, 4)
    )


def _training(found: Mapping[str, Any], out: Path) -> str:
    t = found["training"]
    held = "" if t["held_out_loss"] is None else f" On held-out digits it is {t['held_out_loss']:.3f}."
    return (
        "<h2>Training</h2>"
        f"<p>{t['updates']:,} updates of 128 digits at random noise levels; the network learns to undo the noise. "
        f"The loss is the squared error relative to its scale at each level, and ended at {t['loss']:.3f}.{held} "
        "Its floor is not zero: what the noise has destroyed cannot be known.</p>"
        + _figure(out / "training.png", "training")
    )


def _samples(found: Mapping[str, Any], out: Path) -> str:
    about = found["frechet_about"]
    values = found["values"]
    rows = [
        [
            html.escape(_NAMES.get(name, name.replace("_", " "))),
            _with_error(v),
            "" if v["floor"] is None else f"{v['floor']:.4g}",
            str(v["n"]),
            html.escape(v["features"]),
            "higher" if v["better"] == "higher" else "lower",
        ]
        for name, v in values.items()
    ]
    return (
        "<h2>Samples</h2>"
        + _figure(out / "samples.png", "samples")
        + f"<p>Unguided samples are {html.escape(about['samples'])}. "
        f"The Fréchet distance is taken in {html.escape(about['features'])} to {html.escape(about['reference'])}; its floor "
        f"is the distance of {html.escape(about['floor'])} ({about['floor_n']} each). To the held-out digits alone the samples "
        f"have {about['to_held_out']:.3f}, where training digits have {about['training_digits_to_held_out']:.3f}. "
        "A sample counts as memorised if it is nearer to a training digit than any other training digit is; a share of new, "
        "real digits does so too, and that share is the floor.</p>"
        + _table(["number", "value", "real data", "n", "features", "better"], rows)
    )


def _solvers(found: Mapping[str, Any], out: Path) -> str:
    solvers = found["solvers"]
    best = {calls: min(e for n, e in _errors(solvers) if n == calls) for calls, _ in _errors(solvers)}
    names = list(solvers["error"])
    rows = [
        [
            str(calls),
            *(
                f"<b>{e:.4f}</b>" if e == best[calls] else f"{e:.4f}"
                for e in (next(rms for n, rms, _ in solvers["error"][name] if n == calls) for name in names)
            ),
        ]
        for calls in best
    ]
    return (
        f"<h2>Three solvers at equal cost</h2><p>The same noise, the same guidance ({solvers['guidance']:g}), the same number "
        "of calls of the denoiser. The error is the root mean square distance a pixel to what the sampling equation gives "
        "when it is solved to convergence.</p>"
        + _figure(out / "solvers.png", "solvers")
        + _table(["calls", *names], rows)
    )


def _errors(solvers: Mapping[str, Any]) -> list[tuple[int, float]]:
    return [(n, rms) for points in solvers["error"].values() for n, rms, _ in points]


def _restoration(found: Mapping[str, Any], out: Path) -> str:
    rows = [
        [
            html.escape(f"{name}: {r['about']}"),
            f"{r['psnr_measured']:.2f}",
            f"{r['psnr_baseline']:.2f}",
            f"{r['psnr_one_sample']:.2f}",
            f"<b>{r['psnr']:.2f}</b>",
            str(r["n"]),
        ]
        for name, r in found["restoration"].items()
    ]
    first = next(iter(found["restoration"].values()))
    return (
        "<h2>Restoration</h2><p>Held-out digits of unknown class, from what is left of them. The estimate is the mean of "
        f"{first['draws']} samples of what the digit may have been. The baseline is a strong one without a network: the exact "
        "posterior mean under one Gaussian a class, fitted to the same training digits. Diffusion begins at it, noised "
        "to about the spread of the data, and the mean over its samples is the estimate.</p>"
        + _figure(out / "restoration.png", "restoration")
        + _table(["PSNR in dB", "measured", first["baseline"], "one sample", "diffusion", "n"], rows)
    )


def _classification(found: Mapping[str, Any], confusion: Tensor) -> str:
    c = found["classification"]
    levels = [[f"{share:.1%}" for share in c["at_sigma_over_alpha"].values()]]
    counts = confusion.tolist()
    top = max(max(row) for row in counts) or 1
    cells = "".join(
        f"<tr><th>{k}</th>"
        + "".join(
            f'<td style="background: rgba({"0,114,178" if k == j else "213,94,0"},'
            f'{min(1.0, 0.1 + 0.5 * n / top if k == j else 0.25 + n / 8) if n else 0:.2f})">{n or ""}</td>'
            for j, n in enumerate(row)
        )
        + "</tr>"
        for k, row in enumerate(counts)
    )
    return (
        f"<h2>Classification</h2><p>The denoiser reads: noise is added to a held-out digit, and the class under which it is "
        f"removed best is the answer. It is right for {c['accuracy']:.1%} ± {c['error']:.1%} of {c['n']} digits; a linear "
        f"classifier trained on the same digits for {c['linear_classifier']:.1%}.</p>"
        + _table([f"noise {ratio} alone" for ratio in c["at_sigma_over_alpha"]], levels)
        + '<div class="scroll"><table class="confusion"><tr><th>true \\ read</th>'
        + "".join(f"<th>{k}</th>" for k in range(10))
        + f"</tr>{cells}</table></div>"
    )


def _again(found: Mapping[str, Any], out: Path) -> str:
    machine, settings = found["machine"], found["settings"]
    place = html.escape(str(out))
    again = f"--out {place} --seed {settings['seed']} --threads {machine['threads']}"
    stages = [[html.escape(name), f"{value:.1f}"] for name, value in found["seconds"].items()]
    return (
        "<h2>What was run, and how to run it again</h2>"
        f"<pre>make demo                        # or: fokker demo {again}\n"
        f"fokker sample --model {place}/model.safetensors --label 0..9 -n 100 --guidance cfg:2 --steps 10 --out digits.png\n"
        "fokker train zoo/digits.yaml     # the same training by itself</pre>"
        f'<p class="note">fokker {html.escape(machine["fokker"])}, torch {html.escape(machine["torch"])}, Python '
        f"{html.escape(machine['python'])}, {html.escape(machine['processor'])}, {machine['cores']} cores, "
        f"{_threads(machine)}. The same seed and number of threads on the same machine give the same numbers.</p>"
        + _table(["stage", "seconds"], stages)
        + "<details><summary>All settings</summary><pre>"
        + html.escape(json.dumps(settings, indent=1))
        + "</pre></details>"
    )


def _threads(machine: Mapping[str, Any]) -> str:
    return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def _with_error(value: Mapping[str, Any]) -> str:
    spread = "" if value["error"] is None else f' <span class="note">± {value["error"]:.2g}</span>'
    return f"{value['value']:.4g}{spread}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=words' if i in words else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells([html.escape(h) for h in head], "th")}</tr>{lines}</table></div>'


def _figure(path: Path, name: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></figure>'
