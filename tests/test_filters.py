"""Statistics of kernels on layers that are known."""

import math

import pytest
import torch
from torch import nn

import fokker as fk
from fokker.errors import FokkerError
from fokker.net.filters import filter_shift, filter_table, random_threshold, scaled, sparsity, variance_entropy

F64 = torch.float64


def test_entropy_of_known_spectra():
    spread = torch.cat([torch.eye(9, dtype=F64), -torch.eye(9, dtype=F64)])
    assert variance_entropy(spread) == pytest.approx(math.log10(9))
    assert variance_entropy(spread[[0, 9]]) == pytest.approx(0.0, abs=1e-12)
    assert variance_entropy(torch.zeros(5, 9)) == 0.0
    assert variance_entropy(torch.ones(5, 9)) == 0.0, "constant kernels have no variance"
    # two patterns, three times the variance on one: shares 3/4 and 1/4
    rows = torch.zeros(4, 9, dtype=F64)
    rows[:2, 0], rows[2:, 1] = torch.tensor([3**0.5, -(3**0.5)], dtype=F64), torch.tensor([1.0, -1.0], dtype=F64)
    assert variance_entropy(rows) == pytest.approx(-(0.75 * math.log10(0.75) + 0.25 * math.log10(0.25)))
    assert math.isnan(random_threshold(3)) and random_threshold(4) == pytest.approx(0.236, abs=5e-4)


def test_a_table_names_the_layers_that_are_dead_or_noise():
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        net[0].weight.copy_(fk.noise((16, 8, 3, 3), 1))
        net[1].weight.copy_(fk.noise((16, 16, 1, 1), 2) * fk.noise((1, 1, 3, 3), 3))
        net[3].weight.copy_(fk.noise((4, 16, 3, 3), 4))
        net[3].weight[:, ::2] = 0
    table = filter_table(net)
    assert [layer.name for layer in table] == ["0", "1", "3"] and [layer.kernels for layer in table] == [128, 256, 64]
    assert table[0].noise and not table[1].noise
    assert table[1].entropy < 1e-6 and table[2].sparsity == 0.5 and table[0].sparsity == 0
    assert table[0].orthogonality > 0.85
    assert len(filter_table(net, size=1)) == 1 and math.isnan(filter_table(net, size=1)[0].threshold)
    with pytest.raises(FokkerError, match="no convolution"):
        filter_table(net, size=5)
    assert len(scaled(net)) == 128 + 256 + 64 and float(scaled(net).abs().max()) == 1.0


def test_shift_is_a_symmetric_divergence():
    a, b = fk.noise((4000, 9), 1, dtype=F64), 2 * fk.noise((3000, 9), 2, dtype=F64)
    assert filter_shift(a, a) == 0.0
    assert filter_shift(a, b) == pytest.approx(filter_shift(b, a), rel=1e-9)
    assert filter_shift(a, b) > 10 * filter_shift(a[:2000], a[2000:])
    assert sparsity(torch.tensor([[1.0, 0.0], [0.01, 0.005], [0.0, 0.02]])) == pytest.approx(1 / 3)
    with pytest.raises(FokkerError, match="one size"):
        filter_shift(a, b[:, :4])
