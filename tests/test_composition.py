"""Everything registered meets everything else: it works, or it is refused for a reason that docs/refusals.md lists.

Every solver on every process, every wrapper under every solver, on every process and around every other wrapper, and a draw
of a solver, a process and up to three wrappers. The law is exact, so a number that is not finite, a shape that changes, or a
sample that depends on its neighbours is the method's fault.
"""

import functools
import inspect
import itertools
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
from fokker.denoiser import Denoiser, Wrapper
from fokker.discrete import Ancestral, FirstHitting, MarkovChain, Remembered, TokenProcess, Truncated
from fokker.discrete.process import SCHEDULES
from fokker.discrete.solve import RULES
from fokker.errors import FokkerError
from fokker.net import build

KINDS = ("guidance", "restorer", "wrapper", "accelerator")
WRAPPERS = [
    (kind, name)
    for kind in KINDS
    for name in catalogue.names(kind)
    if isinstance(catalogue.find(kind, name)[0], type)  # a change of weights is a function and gives a network
]
Combination = tuple[str, str, tuple[tuple[str, ...], ...]]  # solver, process, (kind, name and for restorers an operator)
N = 2
LABEL = torch.tensor([0, 2])
TRUTH = SHAPED.sample(N, seed=11)
PAGE = (Path(__file__).parents[1] / "docs" / "refusals.md").read_text(encoding="utf-8")
REASONS = [
    re.compile(reason)
    for row in re.findall(r"^\| (`[^|]+`) \|", PAGE, re.MULTILINE)
    for reason in re.findall(r"`([^`]+)`", row)
]


def wrap(kind: str, name: str, inner: Denoiser, pick: slice = slice(None), operator: str = "mask") -> Denoiser:
    options: dict[str, Any] = {}
    parameters = inspect.signature(catalogue.find(kind, name)[0]).parameters
    if kind == "guidance" and "scale" in parameters:
        options["scale"] = 2.0
    if kind != "restorer":
        return made(kind, name, inner, **options)
    if "noise_std" in parameters:
        options["noise_std"] = 0.1
    measure = OPERATORS[operator]
    return made(kind, name, inner, measure, measure(TRUTH[pick]), **options)


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
    if any(kind == "accelerator" for kind, *_ in wrappers):
        net = network()
        # an anchor is for the process to take out, and nothing that this network knows
        told = fk.NetworkDenoiser(net, process)
        denoiser = told if not process.anchored else fk.as_denoiser(functools.partial(unanchored, net, process), process)
    for kind, wrapper, *operator in wrappers:
        denoiser = wrap(kind, wrapper, denoiser, pick, *operator)
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
        # two restorers over each other may drive a state to a thousand, and rounding is relative
        near = 1e-7 * max(1.0, float(out.abs().max()))
        if alone and not adaptive(plan) and not torch.allclose(run(combination, slice(1, 2))[0], out[1:2], rtol=0, atol=near):
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


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_under_every_restorer(operator):
    restorers = [name for kind, name in WRAPPERS if kind == "restorer"]
    faultless([("renoise", "vp", (("restorer", name, operator),)) for name in restorers], alone=True)


@pytest.mark.parametrize("seed", range(8))
def test_a_draw_of_deep_combinations_and_each_sample_is_its_own(seed):
    draw = random.Random(seed)
    combinations = [
        (draw.choice(list(SOLVERS)), draw.choice(list(PROCESSES)), tuple(draw.choices(WRAPPERS, k=draw.choice((2, 3)))))
        for _ in range(15)
    ]
    faultless(combinations, alone=True)


TOKENS = {
    f"{schedule}, {replace} replaced": TokenProcess(5, replace, schedule)
    for schedule, replace in itertools.product(SCHEDULES, (0.0, 0.3, 1.0))
}
SAMPLERS = {f"ancestral, {rule}": Ancestral(rule) for rule in RULES} | {f"hitting {k}": FirstHitting(k) for k in (1, 2)}
LENGTH = 4


def token_wrappers() -> list[type]:
    """Those that say that they have a meaning for tokens."""

    def below(kind: type) -> list[type]:
        return [found for sub in kind.__subclasses__() for found in (sub, *below(sub))]

    named = {catalogue.find(kind, name)[0] for kind, name in WRAPPERS} | {Remembered, Truncated}
    return sorted((w for w in named if w in below(Wrapper) and w.tokens), key=lambda w: w.__name__)


class Labelled(Denoiser):
    """One exact chain for each class, and their mean for none."""

    conditions = ("label",)

    def __init__(self, process):
        super().__init__(process)
        draw = torch.Generator().manual_seed(0)
        laws = [torch.rand(6, 5, generator=draw, dtype=F64) for _ in range(2)]
        self.chains = [MarkovChain(p[0] / p[0].sum(), p[1:] / p[1:].sum(1, True), LENGTH).denoiser(process) for p in laws]

    def x0(self, x_t, t, label=None):
        found = torch.stack([chain(x_t, t) for chain in self.chains])
        if label is None:
            return found.mean(0)
        own = torch.nn.functional.one_hot(label.clamp_min(0), 2).T[..., None, None] * (label >= 0)[:, None, None]
        return torch.where((label >= 0)[:, None, None], (own * found).sum(0), found.mean(0))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", TOKENS)
def test_every_pair_of_token_wrappers_under_every_sampler_of_tokens(process, sampler):
    process, sampler, label = TOKENS[process], SAMPLERS[sampler], torch.tensor([0, 1, -1])
    given = LENGTH if isinstance(sampler, FirstHitting) else fk.grids.Uniform(3)
    wrapped = [(), *itertools.product(token_wrappers(), repeat=1), *itertools.product(token_wrappers(), repeat=2)]
    ran = 0
    for kinds in wrapped:
        try:
            plan = sampler.plan(process, given)
            denoiser: Denoiser = Labelled(process)
            for kind in kinds:
                denoiser = kind(denoiser, scale=1.5) if kind is fk.guide.CFG else kind(denoiser)
        except FokkerError as reason:
            assert any(r.search(str(reason)) for r in REASONS), reason
            continue
        u = fk.keyed.uniform((3, LENGTH), seed=1)
        out = fk.sample(denoiser, process.start(u), plan, label=label)
        assert out.shape == (3, LENGTH) and out.dtype == torch.int64 and 0 <= int(out.min()) <= int(out.max()) < 5, kinds
        alone = fk.sample(denoiser, process.start(u[1:2]), plan, ids=[1], label=label[1:2])
        assert torch.equal(alone, out[1:2]), kinds
        ran += 1
    assert ran >= (0 if process.replace and isinstance(sampler, FirstHitting) else len(token_wrappers()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_table_adds_up_tokens(solver):
    with pytest.raises(FokkerError) as refused:
        SOLVERS[solver].plan(TOKENS["linear, 0.3 replaced"], fk.grids.Uniform(4))
    assert any(r.search(str(refused.value)) for r in REASONS), refused.value


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda w: w[1])
def test_a_wrapper_of_numbers_refuses_tokens(wrapper):
    denoiser = Labelled(TOKENS["linear, 0.3 replaced"])
    if catalogue.find(*wrapper)[0] in token_wrappers():
        wrap(*wrapper, denoiser)
        return
    with pytest.raises(FokkerError, match=r"works on numbers and .* on tokens"):
        wrap(*wrapper, denoiser)


def test_the_page_of_refusals_lists_reasons():
    """A reason that no longer occurs leaves the page by hand; here only that the page can be read."""
    assert all(reason.pattern for reason in REASONS)
