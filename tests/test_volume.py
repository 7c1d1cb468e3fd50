"""Volumes from a prior of their slices: the rounds of ADMM, what they remember, and measurements of every slice."""

import itertools
import math

import pytest
import torch
from laws_for_tests import F64, OPERATORS
from torch import Tensor

import fokker as fk
from fokker.charts import Charted, Slices
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.restore.gram import DENSE
from fokker.restore.mri import MRI
from fokker.restore.operators import Downsample, Mask
from fokker.restore.tomography import ParallelBeam
from fokker.restore.volume import DiffusionMBIR, SliceVariation, Slicewise, largest_singular_value

VP = fk.VP()
SHAPE = (1, 5, 3, 4)  # channels, depth, height, width
LAW = GaussianMixture([0.5, 0.5], fk.noise((2, 1, 3, 4), seed=1, dtype=F64), 0.4)
A = ParallelBeam(2, (1, 3, 4))
X = fk.noise((2, *SHAPE), seed=2, dtype=F64)
Y = A.measure(X, 0.1, seed=3)


def dense(operator: fk.restore.Operator, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an operator, (rows, columns)."""
    each = torch.eye(math.prod(shape), dtype=F64).reshape(-1, *shape)
    return operator(each).flatten(1).T


def differences(axis: int) -> Tensor:
    """The matrix of neighbouring slices' differences on SHAPE, written out entry by entry."""
    place = torch.arange(math.prod(SHAPE)).reshape(SHAPE)
    pairs = [(int(a), int(b)) for a, b in zip(place.narrow(axis - 1, 0, SHAPE[axis - 1] - 1).flatten(),
                                              place.narrow(axis - 1, 1, SHAPE[axis - 1] - 1).flatten())]  # fmt: skip
    D = torch.zeros(len(pairs), math.prod(SHAPE), dtype=F64)
    for row, (a, b) in enumerate(pairs):
        D[row, a], D[row, b] = -1.0, 1.0
    return D


@pytest.mark.parametrize("axis", [2, 3])
def test_a_round_is_its_formula(axis):
    """With enough iterations the normal equations are solved, whatever x it begins at; then soft thresholds and the dual."""
    lam, rho = 0.05, 0.3
    problem = SliceVariation(A, Y, lam, rho, iterations=200, axis=axis)
    M, D = dense(A, SHAPE), differences(axis)
    M, y = M / torch.linalg.matrix_norm(M, 2), Y.flatten(1) / torch.linalg.matrix_norm(M, 2)
    d, u = (fk.noise((2, len(D)), seed=k, dtype=F64) for k in (5, 6))
    split = X.diff(dim=axis).shape
    x, (d1, u1) = problem.round(X, (d.reshape(split), u.reshape(split)))
    right = y @ M + rho * (d - u) @ D
    # where neither the scanner nor the differences see anything, x stays where it began
    B = M.T @ M + rho * D.T @ D
    expected = X.flatten(1) + (right - X.flatten(1) @ B) @ torch.linalg.pinv(B, rtol=1e-10, hermitian=True)
    assert torch.allclose(x.flatten(1), expected, atol=1e-5)
    jump = x.flatten(1) @ D.T + u
    soft = torch.where(jump.abs() > lam / rho, jump - lam / rho * jump.sign(), torch.zeros_like(jump))
    assert torch.allclose(d1.flatten(1), soft, atol=1e-12) and torch.allclose(u1.flatten(1), jump - soft, atol=1e-12)


def test_one_iteration_is_steepest_descent_from_where_it_begins():
    rho = 0.3
    problem = SliceVariation(A, Y, 0.05, rho, iterations=1)
    M, D = dense(A, SHAPE), differences(2)
    M, y = M / torch.linalg.matrix_norm(M, 2), Y.flatten(1) / torch.linalg.matrix_norm(M, 2)
    B = M.T @ M + rho * D.T @ D
    r = y @ M - X.flatten(1) @ B
    step = r.square().sum(1) / (r @ B * r).sum(1)
    x, _ = problem.round(X, problem.begin(X))
    assert torch.allclose(x.flatten(1), X.flatten(1) + step[:, None] * r, atol=1e-6)


def test_many_rounds_minimise_misfit_and_variation():
    """The optimality conditions: y - x = lam D^T s with s = sign(D x), or within [-1, 1] where D x is 0."""
    lam = 0.2
    whole = Mask(torch.ones(SHAPE, dtype=F64))
    found = SliceVariation(whole, X, lam, 0.5, iterations=60).solve(torch.zeros_like(X), 400)
    s = (X - found).cumsum(2)[:, :, :-1] / -lam
    slope = found.diff(dim=2)
    assert s.abs().max() < 1 + 1e-6
    assert torch.allclose(s[slope.abs() > 1e-6], slope.sign()[slope.abs() > 1e-6], atol=1e-6)
    assert bool((slope.abs() < 1e-6).any()) and bool((slope.abs() > 1e-6).any())
    assert torch.allclose((X - found).sum(2), torch.zeros_like(X.sum(2)), atol=1e-8)


def test_weights_mean_the_same_for_every_scanner():
    """Measured in other units, with the operator scaled as well, nothing changes."""

    class Louder(ParallelBeam):
        def _footprints(self) -> Tensor:
            return 50.0 * super()._footprints()

    ours = [SliceVariation(B, 50.0**k * Y).solve(torch.zeros_like(X), 5) for k, B in enumerate((A, Louder(2, (1, 3, 4))))]
    assert torch.allclose(*ours, atol=1e-9)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_largest_singular_value(name):
    operator = OPERATORS[name]
    like = fk.noise((2, 2, 4, 6), seed=1, dtype=F64)
    exact = torch.linalg.matrix_norm(dense(operator, (2, 4, 6)), 2)
    # power iterations come from below
    found = largest_singular_value(operator, like)
    assert found.shape == (2, 1) and bool((found <= exact * (1 + 1e-9)).all()) and bool((found > 0.97 * exact).all())


def lifted(process: fk.Process = VP) -> fk.Denoiser:
    return Charted(LAW.denoiser(process), Slices())


def test_the_dual_variables_live_for_one_run():
    """Two steps by hand, with what was remembered; a second run begins anew."""
    plan = fk.solve.get("ddim").plan(VP, fk.grids.get("uniform")(2, start=0.9, end=0))
    wrapper = DiffusionMBIR(lifted(), A, Y)
    start = fk.noise(X.shape, seed=7, dtype=F64)
    memory = wrapper.variation.begin(X)
    x, times = start, [*plan.times, 0.0]
    for t, s in itertools.pairwise(times):
        belief = lifted()(x, t)
        better, memory = wrapper.variation.round(belief, memory)
        (a, _, v), (b, _, w) = VP.at(t), VP.at(s)
        # the noise of the uncorrected belief
        x = b * better + w * (x - a * belief) / v
    assert float(memory[1].abs().max()) > 0
    for _ in range(2):
        assert torch.allclose(fk.sample(wrapper, start, plan), x, atol=1e-10)
    used = wrapper.bind(fk.Run(2, plan=plan))
    first = used(start, 0.9)
    assert not torch.allclose(used(start, 0.9), first) and torch.equal(used.bind(fk.Run(2, plan=plan))(start, 0.9), first)
    # outside a run nothing is remembered
    assert torch.equal(wrapper(start, 0.5), wrapper(start, 0.5))


def test_rounds_of_a_step_continue_each_other():
    wrapper = DiffusionMBIR(lifted(), A, Y, rounds=3)
    x, memory = lifted()(X, 0.0), wrapper.variation.begin(X)
    for _ in range(3):
        x, memory = wrapper.variation.round(x, memory)
    assert torch.allclose(wrapper(X, 0.0), x, atol=1e-12)


@pytest.mark.parametrize("process", [VP, fk.EDM(), fk.Flow()], ids=lambda p: p.name)
def test_on_the_state_the_rounds_come_before_the_denoiser(process):
    plan = fk.solve.get("ddim").plan(process, fk.grids.get("uniform")(2, start=0.9, end=0))
    wrapper = DiffusionMBIR(lifted(process), A, Y, at="state")
    start = process.start(fk.noise(X.shape, seed=7, dtype=F64), None, 0.9)
    x, memory, times = start, wrapper.variation.begin(X), [*plan.times, 0.0]
    for t, s in itertools.pairwise(times):
        (a, _, v), (b, _, w) = process.at(t), process.at(s)
        better, memory = wrapper.variation.round(x / a, memory)
        x = a * better
        belief = lifted(process)(x, t)
        x = b * belief + w / v * (x - a * belief)
    x, _ = wrapper.variation.round(x, memory)
    found = fk.sample(wrapper, start, plan)
    assert torch.allclose(found, x, atol=1e-9)
    each = torch.tensor([0.3, 0.7], dtype=F64)
    assert torch.allclose(wrapper(start, each)[1], wrapper(start, 0.7)[1], atol=1e-10)


def test_without_signal_the_state_is_left_alone():
    process = fk.Flow()
    wrapper = DiffusionMBIR(lifted(process), A, Y, at="state")
    found = wrapper(X, torch.tensor([1.0, 0.5], dtype=F64))
    belief = lifted(process)(X, 1.0)
    alone, _ = wrapper.variation.round(belief, wrapper.variation.begin(X))
    assert torch.allclose(found[0], alone[0], atol=1e-10)
    assert torch.allclose(wrapper(X, 1.0)[0], alone[0], atol=1e-10)


@pytest.mark.parametrize("axis", [2, 4])
@pytest.mark.parametrize("name", ["mri", "downsample", "mask"])
def test_every_slice_is_measured_as_a_picture(name, axis):
    inner = {
        "mri": MRI(2.0, coils=2, shape=(2, 4, 6)),
        "downsample": Downsample(2),
        "mask": Mask(0.5, (2, 4, 6), seed=1),
    }[name]
    operator = Slicewise(inner, axis)
    pictures = fk.noise((6, 2, 4, 6), seed=4, dtype=F64)
    x = pictures.unflatten(0, (2, 3)).movedim(1, axis)
    y = inner(pictures)
    assert torch.equal(operator(x).flatten(0, 1), y) and operator.check(tuple(x.shape)) < 1e-12
    for whole, single in ((operator.pinv(operator(x)), inner.pinv(y)),
                          (operator.adjoint(operator(x)), inner.adjoint(y)),
                          (operator.consistent(x, operator(x)), inner.consistent(pictures, y))):  # fmt: skip
        assert torch.allclose(whole.movedim(axis, 1).flatten(0, 1), single, atol=1e-9)
    b = torch.tensor([0.3, 0.7], dtype=F64).reshape(2, *[1] * (y.ndim))
    v = operator(x)
    assert torch.allclose(operator.solve(2.0 * operator(operator.adjoint(v)) + b * v, 2.0, b), v, atol=1e-8)
    assert torch.equal(operator.seen(v).flatten(0, 1), inner.seen(y))


@pytest.mark.parametrize("operator", [ParallelBeam(60, (1, 32, 32)), MRI(1.0, coils=4, shape=(2, 32, 32))], ids=["ct", "mri"])
def test_the_inverse_of_a_large_noisy_measurement_is_a_least_squares_solution(operator):
    """Too large for a matrix: A^T (A x - y) falls to a small share of A^T y, and x is no larger than noise may make it."""
    truth = fk.noise((1, 1 if isinstance(operator, ParallelBeam) else 2, 32, 32), seed=1, dtype=F64)
    y = operator.measure(truth, 0.01)
    assert y[0].numel() > DENSE
    x = operator.pinv(y)
    assert operator.adjoint(operator(x) - y).norm() < 1e-3 * operator.adjoint(y).norm()
    assert (x - truth).norm() < 0.3 * truth.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SliceVariation(A, Y, lam=-1.0), "lam=-1"),
        (lambda: SliceVariation(A, Y, rho=0.0), "rho=0"),
        (lambda: SliceVariation(A, Y, iterations=0), "iterations=0"),
        (lambda: SliceVariation(A, Y, axis=5), "axis=5"),
        (lambda: SliceVariation(A, Y, axis=1), "axis=1"),
        (lambda: DiffusionMBIR(lifted(), A, Y, rounds=0), "rounds=0"),
        (lambda: DiffusionMBIR(lifted(), A, Y, at="stat"), "did you mean 'state'"),
        (lambda: Slicewise(A, 1), "axis=1"),
    ],
)
def test_what_is_no_volume_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()
