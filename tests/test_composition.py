"""Everything registered meets everything else: it works, or it is refused for a reason that docs/refusals.md lists.

Every solver on every process, every wrapper under every solver, on every process and around every other wrapper, and a draw
of a solver, a process and up to three wrappers. The law is exact, so a number that is not finite, a shape that changes, or a
sample that depends on its neighbours is the method's fault.
"""

import functools
import inspect
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from laws_for_tests import F64, OPERATORS, PROCESSES, SHAPE, SHAPED, SOLVERS, adaptive, cond, made, start
from small_nets import alive

import fokker as fk
from fokker import catalogue
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.net import build

KINDS = ("guidance", "restorer", "wrapper", "accelerator")
WRAPPERS = [
    (kind, name)
    for kind in KINDS
    for name in catalogue.names(kind)
    if isinstance(catalogue.find(kind, name)[0], type)  # a change of weights is a function and gives a network
]
Combination = tuple[str, str, tuple[tuple[str, str], ...]]
N = 2
LABEL = torch.tensor([0, 2])
TRUTH = SHAPED.sample(N, seed=11)
PAGE = (Path(__file__).parents[1] / "docs" / "refusals.md").read_text(encoding="utf-8")
REASONS = [re.compile(row) for row in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)]


def wrap(kind: str, name: str, inner: Denoiser, pick: slice = slice(None)) -> Denoiser:
    options: dict[str, Any] = {}
    parameters = inspect.signature(catalogue.find(kind, name)[0]).parameters
    if kind == "guidance" and "scale" in parameters:
        options["scale"] = 2.0
    if kind != "restorer":
        return made(kind, name, inner, **options)
    if "noise_std" in parameters:
        options["noise_std"] = 0.1
    mask = OPERATORS["mask"]
    return made(kind, name, inner, mask, mask(TRUTH[pick]), **options)


@functools.cache
def network() -> torch.nn.Module:
    """A U-Net for what needs one: caches of features."""
    net = build({"kind": "unet", "width": 8, "mults": [1, 2], "blocks": 1, "heads": 2, "channels": 2, "classes": 3})
    return alive(net, 0.05).double().eval()


def run(combination: Combination, pick: slice = slice(None)) -> tuple[torch.Tensor, fk.Plan]:
    """The samples of a combination; `pick` takes one of them alone."""
    solver, name, wrappers = combination
    process = PROCESSES[name]
    plan = SOLVERS[solver].plan(process, fk.grids.get("logsnr")(4, start=0.9, end=0.05))
    x = start(process, N, SHAPE, t=0.9)
    given = {k: v[pick] for k, v in (cond(process, x) | {"label": LABEL}).items()}
    denoiser: Denoiser = SHAPED.denoiser(process)
    if any(kind == "accelerator" for kind, _ in wrappers):
        net = network()
        # an anchor is for the process to take out, and nothing that this network knows
        told = fk.NetworkDenoiser(net, process)
        denoiser = told if not process.anchored else fk.as_denoiser(functools.partial(unanchored, net, process), process)
    for kind, wrapper in wrappers:
        denoiser = wrap(kind, wrapper, denoiser, pick)
    return fk.sample(denoiser, x[pick], plan, ids=list(range(N))[pick], **given), plan


def unanchored(net, process, x_t, t, y, label=None):
    alpha, beta, sigma = process.coefficients(t, x_t)
    level = (-process.logsnr(torch.as_tensor(t, dtype=F64)) / 8).clamp(-5, 5).expand(len(x_t))
    plain = (x_t - beta * y) / (alpha**2 + sigma**2) ** 0.5
    return net(plain, level.float(), label=label)


def fault(combination: Combination, alone: bool = False) -> str:
    """What is wrong with a combination; empty if it works, or is refused for a listed reason."""
    try:
        out, plan = run(combination)
        if out.shape != (N, *SHAPE) or out.dtype != F64:
            return f"{combination}: {tuple(out.shape)} {out.dtype}"
        if not bool(torch.isfinite(out).all()):
            return f"{combination}: not finite"
        if alone and not adaptive(plan) and not torch.allclose(run(combination, slice(1, 2))[0], out[1:2], rtol=0, atol=1e-7):
            return f"{combination}: a sample depends on its neighbours"
    except FokkerError as reason:
        return "" if any(r.search(str(reason)) for r in REASONS) else f"{combination}: refused, unlisted: {reason}"
    except Exception as error:
        return f"{combination}: {type(error).__name__}: {error}"
    return ""


def faultless(combinations: list[Combination], alone: bool = False) -> None:
    found = [text for combination in combinations if (text := fault(combination, alone))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_with_every_process_and_every_wrapper(solver):
    faultless([(solver, process, ()) for process in PROCESSES] + [(solver, "vp", (w,)) for w in WRAPPERS])


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_with_every_wrapper(process):
    faultless([("dpmpp-2m", process, (wrapper,)) for wrapper in WRAPPERS])


@pytest.mark.parametrize("outer", WRAPPERS, ids=lambda w: w[1])
def test_every_wrapper_around_every_wrapper(outer):
    faultless([("ddim", "vp", (inner, outer)) for inner in WRAPPERS])


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_of_deep_combinations_and_each_sample_is_its_own(seed):
    draw = random.Random(seed)
    combinations = [
        (draw.choice(list(SOLVERS)), draw.choice(list(PROCESSES)), tuple(draw.choices(WRAPPERS, k=draw.choice((2, 3)))))
        for _ in range(15)
    ]
    faultless(combinations, alone=True)


def test_the_page_of_refusals_lists_reasons():
    """A reason that no longer occurs leaves the page by hand; here only that the page can be read."""
    assert all(reason.pattern for reason in REASONS)
