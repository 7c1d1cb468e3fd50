"""Robust recovery of low-rank matrices: the steps are sub-gradients, units do not matter, and what Sign-RIP is for normal A."""

import math

import pytest
import torch
from laws_for_tests import F64
from torch import Tensor

import fokker as fk
from fokker.errors import FokkerError
from fokker.restore import Operator
from fokker.restore.lowrank import robust_lowrank, sign_rip_deviation
from fokker.restore.operators import Mask, Matrix

N = 6


def normal(*shape: int, index: int = 0) -> Tensor:
    return fk.noise(shape, seed=7, stream="check", index=index, dtype=F64)


def measurement(rows: int, n: int = N, scale: float = 1.0, index: int = 0) -> Matrix:
    """Normal A_i, not symmetric."""
    return Matrix(scale * normal(rows, n * n, index=index), (n, n))


class Rows(Operator):
    """So many normal rows that their Gram matrix would be large."""

    def __init__(self, rows: int, n: int) -> None:
        self.rows, self.n = normal(rows, n * n, index=6), n

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rows.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.rows).reshape(-1, self.n, self.n)


A = measurement(40)
W = normal(3, N, 2, index=1)
X = W @ W.mT
Y = A(X) + torch.where(normal(3, 40, index=2) > 0.8, 30.0, 0.0)


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("normalised", [True, False])
def test_steps_go_down_the_loss(loss, normalised):
    """Autograd's gradient of the loss as it is written, twice; divided by the spectral norm of Q, where asked."""
    B = torch.linalg.qr(fk.noise((3, N, 4), seed=5, dtype=F64))[0]
    U, losses = 0.3 * B, []
    for k in range(3):
        leaf = U.clone().requires_grad_()
        misfit = Y - (leaf @ leaf.mT).flatten(1) @ A.matrix.T
        each = (misfit.abs() if loss == "l1" else misfit.square() / 2).mean(1)
        losses.append(each.detach())
        (slope,) = torch.autograd.grad(each.sum(), leaf)
        weight = misfit.detach().sign() if loss == "l1" else misfit.detach()
        Q = (weight @ A.matrix / 40).reshape(3, N, N)
        size = torch.linalg.svdvals((Q + Q.mT) / 2)[:, 0] if normalised else torch.ones(3, dtype=F64)
        if k < 2:
            U = U - 0.05 * 0.9**k / size[:, None, None] * slope
    found = robust_lowrank(A, Y, 4, loss, 0.3, steps=2, lr=0.05, decay=0.9, normalised=normalised, seed=5)
    assert torch.allclose(found.factor, U, atol=1e-12)
    assert torch.allclose(found.losses, torch.stack(losses, 1), atol=1e-12)
    assert torch.allclose(found.matrix, U @ U.mT, atol=1e-12)


def test_the_spectral_start_is_the_positive_part():
    found = robust_lowrank(A, Y, 5, init_scale=0.5, start="spectral", steps=1, lr=1e-300)
    C = (Y.sign() @ A.matrix).reshape(3, N, N)
    values, vectors = torch.linalg.eigh((C + C.mT) / 2)
    top = values[:, -5:].clamp_min(0)
    assert bool((values[:, -5:] < 0).any())
    expected = (vectors[:, :, -5:] * top[:, None]) @ vectors[:, :, -5:].mT / top.norm(dim=1)[:, None, None]
    assert torch.allclose(found.matrix, 0.25 * expected, atol=1e-12)


def test_units_of_the_measurement_do_not_matter():
    plain = robust_lowrank(A, Y, steps=50).factor
    loud = robust_lowrank(measurement(40, scale=1e3), 1e3 * Y, steps=50).factor
    assert torch.allclose(loud, plain, rtol=1e-6, atol=0)


def test_the_size_of_an_outlier_does_not_enter():
    """Beyond what any fit reaches only its sign is seen: the same bits; the squared loss sees it."""
    wrong = (normal(3, 40, index=2) > 0.8).to(F64)
    found = [robust_lowrank(A, A(X) + size * wrong, steps=60).factor for size in (1e3, 1e6)]
    assert torch.equal(*found)
    squared = [robust_lowrank(A, A(X) + size * wrong, loss="l2", steps=60).factor for size in (1e3, 1e6)]
    assert not torch.allclose(*squared, rtol=1e-3)


def test_the_truth_is_found_and_its_rank():
    """A third of 400 measurements wrong, three times as many factors as needed; and each sample by itself."""
    operator = measurement(400)
    y = operator(X) + torch.where(normal(3, 400, index=4) > 0.5, 50.0, 0.0)
    found = robust_lowrank(operator, y, ids=[4, 5, 6])
    error = (found.matrix - X).flatten(1).norm(dim=1) / X.flatten(1).norm(dim=1)
    assert bool((error < 1e-3).all()) and found.rank().tolist() == [2, 2, 2]
    alone = robust_lowrank(operator, y[1:2], ids=[5])
    # the columns themselves: a start is the id's own
    assert torch.allclose(alone.factor, found.factor[1:2], atol=1e-6)
    assert not torch.allclose(robust_lowrank(operator, y[1:2], ids=[4]).factor, alone.factor, atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_scale_of_normal_measurements(share):
    """scale = sqrt(2 / pi) E[exp(-s^2 / (2 |E|^2))], for a mean of m numbers of variance at most 1."""
    m, size, E = 20_000, 5.0, normal(1, 4, 2, index=5) @ normal(1, 4, 2, index=5).mT
    operator = Rows(m, 4)
    wrong = (torch.arange(m) < share * m).to(F64)[None]
    scale, deviation = sign_rip_deviation(operator, E, size * wrong)
    length = float(torch.linalg.matrix_norm(E))
    expected = math.sqrt(2 / math.pi) * (1 - share + share * math.exp(-0.5 * (size / length) ** 2))
    assert abs(float(scale) - expected) < 4 / math.sqrt(m)
    # the ten numbers of a symmetric Q, each a mean of m of variance at most 1
    assert float(deviation * scale) < 4 * math.sqrt(10 / m)


def test_the_deviation_is_the_supremum():
    errors = normal(3, N, N, index=8)
    scale, deviation = sign_rip_deviation(A, errors, 2.0, rank=2)
    Q = (((errors.flatten(1) @ A.matrix.T + 2.0).sign() @ A.matrix) / 40).reshape(3, N, N)
    unit = (errors + errors.mT) / 2 / errors.flatten(1).norm(dim=1)[:, None, None]
    rest = (Q + Q.mT) / 2 - scale[:, None, None] * unit
    # of all multiples of the ideal sub-gradient the nearest
    assert torch.allclose((rest * unit).sum((1, 2)), torch.zeros(3, dtype=F64), atol=1e-12)
    left, values, right = torch.linalg.svd(rest)
    best = (left[:, :, :2] * values[:, None, :2]) @ right[:, :2]
    best = best / best.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose((rest * best).sum((1, 2)), deviation * scale, atol=1e-12)
    other = normal(3, N, 2, index=9) @ normal(3, 2, N, index=10)
    other = other / other.flatten(1).norm(dim=1)[:, None, None]
    assert bool(((rest * other).sum((1, 2)) < deviation * scale).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robust_lowrank(A, Y, loss="l3"), "unknown loss"),
        (lambda: robust_lowrank(A, Y, start="zero"), "unknown start"),
        (lambda: robust_lowrank(A, Y, init_scale=0.0), "init_scale=0"),
        (lambda: robust_lowrank(A, Y, decay=1.5), "decay=1.5"),
        (lambda: robust_lowrank(A, Y, steps=0), "steps=0"),
        (lambda: robust_lowrank(A, Y, rank=7), "rank=7"),
        (lambda: robust_lowrank(Mask(torch.ones(4, 6)), torch.ones(1, 4, 6)), "square matrices"),
        (lambda: sign_rip_deviation(A, torch.zeros(1, N, N, dtype=F64)), "other than 0"),
    ],
)
def test_what_cannot_be_recovered_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()
