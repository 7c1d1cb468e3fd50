"""Plans are tables: what is printed, stored, inverted and differentiated is what runs."""

import json

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SOLVERS, adaptive, cond, start

import fokker as fk
from fokker.errors import FokkerError
from fokker.grids import LogSNR, Times, Uniform
from fokker.plan import Draft, Node, Plan, Row, Term
from fokker.solve.invert import BDIA, EDICT

VP = PROCESSES["vp"]


def plan_of(name: str, process: fk.Process = VP, steps: int = 5) -> Plan:
    return SOLVERS[name].plan(process, LogSNR(steps, start=0.9, end=0.05))


@pytest.mark.parametrize("name", SOLVERS)
def test_json_keeps_every_bit_of_a_plan(name):
    plan = plan_of(name)
    if adaptive(plan):
        with pytest.raises(FokkerError, match="adaptive"):
            plan.json()
        return
    again = Plan.from_json(plan.json())
    x = start(VP, t=0.9)
    assert again.nfe == plan.nfe and again.noises == plan.noises
    assert torch.equal(fk.sample(LAW.denoiser(VP), x, again, seed=2), fk.sample(LAW.denoiser(VP), x, plan, seed=2))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"fokker_plan": 1}', '{"rows": 3}', "not json"])
def test_what_is_no_plan_is_refused_in_one_sentence(text):
    with pytest.raises(FokkerError, match="plan"):
        Plan.from_json(text)


def test_a_plan_that_reads_rows_before_they_exist_is_refused():
    stored = json.loads(plan_of("ddim").json())
    stored["rows"][1]["terms"][0][1] = 4
    with pytest.raises(FokkerError):
        Plan.from_json(json.dumps(stored))


def test_the_table_prints_a_line_a_row_with_its_numbers():
    plan = plan_of("dpmpp-2m")
    lines = plan.table().splitlines()
    assert len(lines) == len(plan.rows) + 1
    (kind, i), c = plan.rows[2].terms[0]
    assert f"{c:+.6g} {kind}{i}" in lines[3]


def test_a_row_is_the_formula_of_the_paper():
    # DDIM from t to s: (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) D
    plan = fk.solve.get("ddim").plan(VP, Times([0.8, 0.5, 0.1]))
    (a_t, _, s_t), (a_s, _, s_s) = VP.at(0.8), VP.at(0.5)
    terms = dict(plan.rows[1].terms)
    assert terms["x", 0] == pytest.approx(s_s / s_t, rel=1e-14)
    assert terms["D", 0] == pytest.approx(a_s - a_t * s_s / s_t, rel=1e-13)


def test_terms_are_linear_combinations():
    x, y = Term({("x", 0): 2.0}), Term({("x", 0): 1.0, ("D", 1): 3.0})
    half = torch.tensor(0.5, dtype=F64)
    combined = half * (x - y) + y / 2 + (-x) * half
    assert {k: float(c) for k, c in combined.parts.items()} == {("x", 0): 0.0, ("D", 1): 0.0}


def test_an_infinite_coefficient_is_refused_with_its_row():
    draft = Draft(VP)
    x = draft.given()
    node = Node.at(VP, torch.tensor(0.5, dtype=F64))
    with pytest.raises(FokkerError, match=r"row 1 .* x0 by"):
        draft.ask(torch.tensor(float("inf"), dtype=F64) * x, node)


@pytest.mark.parametrize("solver", [EDICT(), EDICT(mix=0.9), BDIA(), BDIA(gamma=0.8)], ids=repr)
@pytest.mark.parametrize("process", ["vp", "edm", "resshift", "mean-reverting"])
def test_invertible_plans_lead_back_to_rounding(solver, process):
    noising = PROCESSES[process]
    plan = solver.plan(noising, Uniform(8, start=0.9, end=0.1))
    x, given = start(noising, t=0.9), cond(noising, start(noising))
    there = fk.run(LAW.denoiser(noising), x, plan, **given)
    back = fk.run(LAW.denoiser(noising), there.outputs, plan.inverse(), **given)
    assert torch.allclose(back.x0, x, rtol=0, atol=1e-9 * float(x.abs().max()))
    assert back.nfe == plan.nfe
    if plan.inputs == 1:
        return  # two states lead back to one: the way there again needs the denoiser's first step
    again = fk.run(LAW.denoiser(noising), [back.x0] * plan.inputs, plan.inverse().inverse(), **given)
    assert torch.allclose(again.x0, there.x0, rtol=0, atol=1e-8 * float(x.abs().max()))


def test_a_plan_without_inverse_says_which_row():
    for name in ("ddim", "dpmpp-2m", "heun", "ddpm"):
        with pytest.raises(FokkerError, match="no exact inverse: row"):
            plan_of(name).inverse()


def test_invertible_solvers_refuse_ends_that_forget_the_state():
    for solver in (EDICT(), BDIA()):
        with pytest.raises(FokkerError, match="start where alpha is 0"):
            solver.plan(fk.Flow(), Uniform(4))
        with pytest.raises(FokkerError, match="forgets the state"):
            solver.plan(VP, Uniform(4, end=0))


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-3m", "heun", "unipc", "adams", "dpm-2"])
def test_the_end_point_is_differentiable_in_the_times(name):
    base = LogSNR(5, start=0.9, end=0.05).times(VP)
    x, denoiser, solver = start(VP, n=2, t=0.9), LAW.denoiser(VP), fk.solve.get(name)

    def end_point(times: torch.Tensor) -> torch.Tensor:
        nodes = [Node(VP, t, VP.alpha(t), VP.sigma(t)) for t in times]
        draft = Draft(VP)
        out = solver.lay(draft, draft.given(), nodes)
        assert isinstance(out, Term)
        plan = draft.finish([out], None, None, {})
        return fk.sample(denoiser, x, plan, gradient=True).sum()

    times = base.clone().requires_grad_()
    (slope,) = torch.autograd.grad(end_point(times), times)
    step = 1e-5
    for k in (1, 3):
        moved = [base.clone() for _ in range(2)]
        moved[0][k] += step
        moved[1][k] -= step
        with torch.no_grad():
            difference = float(end_point(moved[0]) - end_point(moved[1])) / (2 * step)
        assert float(slope[k]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


def test_states_that_nobody_needs_are_dropped():
    plan = plan_of("ddim", steps=9)
    held = max(len(row.terms) for row in plan.rows if isinstance(row, Row))
    assert held == 2
