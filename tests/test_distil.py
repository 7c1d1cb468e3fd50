"""Distillation: targets that are exact, deltas that merge to the same network, students that are models."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fokker as fk
from fokker.data.source import Arrays
from fokker.denoiser import NetworkDenoiser
from fokker.distil import Lesson, Steps, halves, pupil
from fokker.distil.consistency import Consistency, ConsistencyDistiller, Consistent, Pupil
from fokker.distil.guided import Guided, GuidedDistiller
from fokker.distil.progressive import FewerSteps, ProgressiveDistiller
from fokker.distil.student import student_of
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.net import build, lora
from fokker.net.mlp import MLP
from fokker.train import Denoising, Key, Rate

F64 = torch.float64
LAW = GaussianMixture([0.3, 0.7], torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.04, labels=torch.arange(2))
PROCESS = fk.Cosine()
TEACHER = LAW.denoiser(PROCESS)


def drawn(objective: Denoising, n: int = 64) -> dict[str, torch.Tensor]:
    """A batch as the objective draws it."""
    x, label = LAW.sample_labelled(n, seed=1)
    return objective.draw(TEACHER, {"x": x.float(), "label": label}, Key(0, 0, n, torch.arange(n)))


def learner(seed: int = 0, guidance: bool = False) -> NetworkDenoiser:
    return NetworkDenoiser(MLP(2, width=32, depth=1, classes=2, guidance=guidance, seed=seed), PROCESS)


def source(n: int = 512) -> Arrays:
    x, label = LAW.sample_labelled(n, seed=2)
    return Arrays({"x": x, "label": label}, "two", classes="01", bounds=None)


def lesson(updates: int = 20, batch: int = 64, peak: float = 3e-3) -> Lesson:
    return Lesson(updates * batch, batch, Rate(peak=peak, warmup=0), conditions=("label",), cpu=True)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
@pytest.mark.parametrize("process", [fk.Cosine(), fk.VP(), fk.EDM(sigma_max=20.0)], ids=repr)
def test_steps_are_the_solver_s_and_can_be_undone(solver: str, process: fk.Process) -> None:
    times = fk.grids.get("karras")(5, start=0.95).times(process)  # at 1 Euler loses digits to the drift of a cosine
    steps = Steps.of(solver, process, times[:-1], times[1:])
    x = process.start(fk.noise((5, 2), dtype=F64), t=0.95)
    belief = LAW.denoiser(process)(x, times[:-1])
    landed = steps.take(torch.arange(5), x, belief)
    for i in range(5):
        pair = fk.grids.Times(values=times[i : i + 2])
        alone = fk.sample(LAW.denoiser(process), x[i : i + 1], fk.solve.get(solver).plan(process, pair))
        assert torch.allclose(alone, landed[i : i + 1], rtol=1e-9, atol=1e-9)
    assert torch.allclose(steps.belief(torch.arange(5), x, landed), belief, rtol=1e-7, atol=1e-9)


def test_a_solver_of_more_evaluations_is_no_table() -> None:
    t = torch.tensor([0.9, 0.5], dtype=F64)
    with pytest.raises(FokkerError, match="more than one evaluation"):
        Steps.of("heun", PROCESS, t, t - 0.1)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("overlapping", [False, True])
def test_a_student_with_the_target_belief_lands_where_the_teacher_does(factor: int, overlapping: bool) -> None:
    loss = FewerSteps(teacher=TEACHER, steps=4, factor=factor, overlapping=overlapping)
    batch = drawn(loss)
    x_t = PROCESS.add_noise(batch["x"], batch["eps"], batch["t"]).to(F64)
    cond = {"label": batch["label"]}
    own, fine = loss.tables(PROCESS)
    wanted = loss.target(x_t, batch, cond)
    i = own.index(batch["t"])
    landed = own.take(i, x_t, wanted)
    for k in range(0, 64, 7):
        t, s = own.t[i[k]].item(), own.s[i[k]].item()
        between = [v for v in [*fine.t.tolist(), fine.s[-1].item()] if s - 1e-9 <= v <= t + 1e-9]
        assert len(between) == factor + 1
        plan = fk.solve.get("ddim").plan(PROCESS, fk.grids.Times(values=between))
        there = fk.sample(TEACHER, x_t[k : k + 1], plan, label=batch["label"][k : k + 1])
        assert torch.allclose(landed[k], there[0], atol=1e-6)
    starts = batch["t"].unique()
    assert len(starts) == (3 * factor + 1 if overlapping else 4)


def test_steps_are_laid_out_once_for_a_process_and_a_long_table_of_betas_is_not_spelt_out_for_it() -> None:
    class Silent(fk.TableVP):
        def __repr__(self) -> str:
            raise AssertionError("1000 betas written out in every update")

    process = Silent(tuple(torch.linspace(1e-3, 0.02, 1000).tolist()))
    consistency, fewer = Consistency(teacher=TEACHER, steps=4), FewerSteps(teacher=TEACHER, steps=4)
    assert consistency.table(process) is consistency.table(process)
    assert fewer.tables(process) is fewer.tables(process)
    assert consistency.table(fk.VP()) is not consistency.table(process)


def test_grids_nest_or_are_refused() -> None:
    coarse, fine = halves("logsnr", PROCESS, 4)
    assert torch.allclose(fine[::2], coarse) and len(fine) == 9
    with pytest.raises(FokkerError, match="power of factor"):
        ProgressiveDistiller(start=12, steps=5)
    with pytest.raises(FokkerError, match="power of factor"):
        ProgressiveDistiller(start=12, steps=2)
    assert list(ProgressiveDistiller(start=16, steps=2).rounds()) == [8, 4, 2]


def test_the_last_rounds_are_longer_and_each_begins_where_the_one_before_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, float, float]] = []

    def taught(student, objective, data, lesson) -> None:
        first = next(student.parameters())
        theirs = 0.0 if objective.teacher is TEACHER else float(next(objective.teacher.parameters()).flatten()[0].detach())
        seen.append((objective.steps, lesson.samples, float(first.flatten()[0].detach()), theirs))
        with torch.no_grad():
            first += 1

    monkeypatch.setattr("fokker.distil.progressive.taught", taught)
    begin = learner()
    weight = float(next(begin.parameters()).flatten()[0].detach())
    student = ProgressiveDistiller(start=16, steps=1, longer=3.0).distil(TEACHER, begin, source(), lesson(10))
    assert [row[:2] for row in seen] == [(8, 640), (4, 640), (2, 1920), (1, 1920)]
    assert [row[2] - weight for row in seen] == pytest.approx([0, 1, 2, 3], abs=1e-5)
    assert [row[3] - weight for row in seen[1:]] == pytest.approx([1, 2, 3], abs=1e-5)  # the student before is the teacher
    assert float(next(student.parameters()).flatten()[0].detach()) - weight == pytest.approx(4, abs=1e-5)
    with pytest.raises(FokkerError, match="longer"):
        ProgressiveDistiller(start=16, steps=1, longer=0.0)


def test_the_guided_target_is_the_guided_belief_at_each_sample_s_own_scale() -> None:
    loss = Guided(teacher=TEACHER, scales=(1.0, 3.0))
    batch = drawn(loss)
    scale = batch["guidance"]
    assert 1 <= scale.min() < 1.3 and 2.7 < scale.max() <= 3 and abs(scale.mean() - 2) < 0.25
    x_t = PROCESS.add_noise(batch["x"], batch["eps"], batch["t"])
    found = loss.target(x_t, batch, {"label": batch["label"], "guidance": scale})
    for k in range(5):
        here = {"label": batch["label"][k : k + 1]}
        alone = fk.guide.CFG(TEACHER, float(scale[k]))(x_t[k : k + 1], batch["t"][k].item(), **here)
        assert torch.allclose(found[k : k + 1], alone, atol=1e-5)


@pytest.mark.parametrize("net", [
    build("digits", width=8), build({"kind": "dit", "width": 16, "depth": 1, "classes": 3}), MLP(2, width=16, classes=3)
], ids=["unet", "dit", "mlp"])  # fmt: skip
def test_a_pupil_is_told_the_scale_and_starts_as_its_teacher(net: nn.Module) -> None:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    teacher = NetworkDenoiser(net, fk.EDM(), "edm", 0.7).eval()
    student = pupil(teacher, guidance=True).eval()
    x, label = fk.noise((3, 2)) if isinstance(net, MLP) else fk.noise((3, 1, 8, 8)), torch.tensor([0, 1, -1])
    scale = torch.tensor([1.0, 2.0, 4.0])
    with torch.no_grad():
        before = teacher(x, 0.5, label=label)
        assert torch.allclose(student(x, 0.5, label=label, guidance=scale), before, atol=1e-6)
        nn.init.normal_(student.net.guidance.rise.weight)
        after = student(x, 0.5, label=label, guidance=scale)
        assert not torch.allclose(after, before, atol=1e-3)
        none = student(x, 0.5, label=label)
    assert torch.allclose(none[0], after[0], atol=1e-5)  # no scale is a scale of 1
    assert student.null(guidance=scale)["guidance"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_deltas_merge_to_the_network_that_they_were_on(kind: str) -> None:
    net = build("digits", width=8, dropout=0.0) if kind == "unet" else build({"kind": "dit", "width": 16, "depth": 1})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, c = fk.noise((2, 1, 8, 8)), torch.zeros(2)
    base = build(net.config)
    base.load_state_dict(net.state_dict())
    with torch.no_grad():
        before = net(x, c)
        deltas = lora.attach(net, rank=3, scale=0.5)
        assert torch.equal(net(x, c), before) or torch.allclose(net(x, c), before, atol=1e-6)
        trained = [name for name, p in net.named_parameters() if p.requires_grad]
        assert trained and all(name.endswith((".up", ".down")) for name in trained)
        for layer in deltas.layers.values():
            nn.init.normal_(layer.up, std=0.1)
        on, state = net(x, c), deltas.state()
        assert not torch.allclose(on, before, atol=1e-3)
        assert torch.allclose(deltas.merge()(x, c), on, atol=1e-4)
        assert net.state_dict().keys() == base.state_dict().keys()
        again = lora.difference(net, base, 3)
        assert torch.allclose(lora.add(base, (again, 1.0))(x, c), on, atol=1e-4)
        assert torch.allclose(lora.add(base, (state, -1.0))(x, c), before, atol=1e-4)


def test_deltas_are_stored_and_refused_elsewhere(tmp_path: Path) -> None:
    net = MLP(2, width=16)
    state = lora.attach(net, rank=2, layers=("inner.*",)).state()
    assert {name.partition(".")[0] for name in state} == {"inner"}
    read = lora.load(lora.save(state, tmp_path / "a.safetensors"))
    assert all(torch.equal(read[name], state[name]) for name in state)
    with pytest.raises(FokkerError, match="its weight"):
        lora.add(MLP(2, width=8), (state, 1.0))
    with pytest.raises(FokkerError, match="no layer"):
        lora.add(MLP(2, width=16, depth=1), (state, 1.0))
    with pytest.raises(FokkerError, match="fits"):
        lora.attach(MLP(2), layers=("nothing",))


def test_a_consistent_denoiser_is_the_identity_at_the_end() -> None:
    x = fk.noise((4, 2), dtype=F64)
    f = Consistent(TEACHER)
    assert torch.equal(f(x, PROCESS.end), x)
    assert torch.allclose(f(x, 0.5), TEACHER(x, 0.5), atol=1e-5)


def test_the_consistency_loss_is_small_for_the_flow_and_the_slow_copy_follows() -> None:
    loss = Consistency(teacher=TEACHER, steps=50)
    batch = drawn(loss)
    student = Pupil(learner())
    before = [p.clone() for p in student.slow.parameters()]
    with torch.no_grad():
        for p in student.inner.parameters():
            p += 1
    student.follow(0.75)
    for p, q in zip(before, student.slow.parameters(), strict=True):
        assert torch.allclose(q, p + 0.25, atol=1e-6) and not q.requires_grad
    value = loss.loss(student, batch)
    assert value.shape == (64,) and bool((value >= 0).all())

    class Flow(fk.Denoiser):
        def x0(self, x_t, t, label=None):
            return LAW.flow(PROCESS, x_t.double(), t, PROCESS.end, tol=1e-6, label=label).to(x_t)

    def gap(denoiser: fk.Denoiser) -> float:
        table = loss.table(PROCESS)
        i = torch.full((64,), 25)
        x = PROCESS.add_noise(batch["x"], batch["eps"], table.t[i])
        x_s = table.take(i, x, TEACHER(x, table.t[i], label=batch["label"]))
        here, there = (denoiser(v, u, label=batch["label"]) for v, u in ((x, float(table.t[25])), (x_s, float(table.s[25]))))
        return float((here - there).norm(dim=1).median())

    assert gap(Flow(PROCESS)) < 0.2 * gap(TEACHER)


def test_students_come_closer_and_repeat_to_the_bit() -> None:
    guided = GuidedDistiller((1.0, 3.0))
    first, again = (guided.distil(TEACHER, learner(guidance=True), source(), lesson(150)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training
    noise, label = fk.noise((128, 2)), torch.arange(128) % 2
    told = {"label": label, "guidance": torch.full((128,), 2.0)}
    x = PROCESS.add_noise(LAW.sample(128, seed=5).float(), noise, 0.5)
    wanted = fk.guide.CFG(TEACHER, 2.0)(x, 0.5, label=label)
    with torch.no_grad():
        error = float((first(x, 0.5, **told) - wanted).square().mean())
        start = float((learner(guidance=True)(x, 0.5, **told) - wanted).square().mean())
    assert error < 0.2 * start


@pytest.mark.parametrize(
    "chain",
    [
        [GuidedDistiller((1.0, 3.0)), ProgressiveDistiller(4, 2, grid="karras", scales=(1.0, 3.0))],
        [ConsistencyDistiller(steps=4, rank=2, grid="karras")],
    ],
    ids=["guided", "lora"],
)
def test_a_student_of_a_model_is_a_model(chain: list, tmp_path: Path) -> None:
    teacher = fk.load("digits")
    weights = {k: v.clone() for k, v in teacher.denoiser.state_dict().items()}
    from fokker.data import open as open_data

    quick = Lesson(16, 8, Rate(peak=1e-4, warmup=0), cpu=True)
    student = student_of(teacher, chain, open_data("toy:digits"), quick)
    assert all(torch.equal(v, weights[k]) for k, v in teacher.denoiser.state_dict().items())
    read = fk.load(student.save(tmp_path / "student.safetensors"))
    assert read.card["distilled"][0]["distiller"] == type(chain[0]).__name__
    cond = {"label": "3"} | ({"guidance": 2.0} if "guidance" in read.conditions else {})
    assert ("guidance" in read.conditions) == isinstance(chain[0], GuidedDistiller)
    start = read.process.start(fk.noise((2, 1, 8, 8)))
    x = fk.sample(read.denoiser, start, solver="ddim", grid="karras", steps=2, **read.condition(2, **cond))
    assert bool(torch.isfinite(x).all())
    assert any(not torch.equal(v, weights[k]) for k, v in read.denoiser.state_dict().items() if k in weights)


def test_impossible_requests_are_one_sentence() -> None:
    for bad in (
        lambda: ConsistencyDistiller(rank=4, scales=(1.0, 3.0)),
        lambda: ConsistencyDistiller(keep=1.0),
        lambda: Guided(teacher=TEACHER, scales=(3.0, 1.0)),
        lambda: Guided(),
        lambda: pupil(TEACHER),
        lambda: pupil(NetworkDenoiser(nn.Linear(2, 2), PROCESS), guidance=True),
        lambda: student_of(fk.load("digits"), [], source(), lesson()),
        lambda: student_of(fk.load("digits"), [GuidedDistiller()], source(), lesson()),
    ):
        with pytest.raises(FokkerError) as problem:
            bad()
        assert "\n" not in str(problem.value)


def test_the_stochastic_sampler_jumps_twice_as_far_and_comes_back() -> None:
    plan = fk.solve.get("distilled-stochastic").plan(PROCESS, fk.grids.get("uniform")(4))
    assert plan.nfe == 3 and len(plan.noises) == 2
    point = GaussianMixture([1.0], torch.tensor([[2.0]]), 1e-8)
    x = fk.sample(point.denoiser(PROCESS), PROCESS.start(fk.noise((4000, 1), dtype=F64)), plan)
    sigma = float(PROCESS.sigma(PROCESS.end))
    assert abs(float(x.mean()) - 2 * float(PROCESS.alpha(PROCESS.end))) < 5 * sigma / math.sqrt(4000)
