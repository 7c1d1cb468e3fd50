"""Statistics of convolution kernels: which layers learned, which are noise, which are dead."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError


@dataclass(frozen=True)
class Layer:
    """What is said about the kernels of one layer, rows of F (n = c_in c_out, k k).

    sparsity       the share of kernels whose largest weight is at most a hundredth of the layer's
    entropy        -sum v log10 v of the explained variances v of centred F: 0 for one pattern, log10(k k) for noise
    threshold      about the smallest entropy of Gaussian 3 x 3 kernels of this number; NaN for other sizes or n < 4
    orthogonality  1 - the mean absolute cosine between the layer's filters
    """

    name: str
    kernels: int
    sparsity: float
    entropy: float
    threshold: float
    orthogonality: float

    @property
    def noise(self) -> bool:
        """Whether the layer cannot be told from random weights."""
        return self.entropy >= self.threshold


def kernels(layer: nn.Module) -> Tensor:
    """The kernels of a convolution as rows (n, positions), float64."""
    weight = layer.weight.detach().to("cpu", torch.float64)  # type: ignore[operator]
    return weight.reshape(weight.shape[0] * weight.shape[1], -1)


def sparsity(rows: Tensor) -> float:
    """The share of kernels (n, positions) whose largest weight is at most a hundredth of the largest of all."""
    most = rows.abs().amax(1)
    return float((most <= rows.abs().max() / 100).double().mean())


def variance_entropy(rows: Tensor) -> float:
    """The entropy, to base 10, of the explained variances of centred kernels; 0 where they have none."""
    centred = rows.double() - rows.double().mean(0)
    v = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    if float(v.sum()) <= 1e-24 * max(1.0, float(rows.double().square().sum())):
        return 0.0
    v = v / v.sum()
    return float(-torch.xlogy(v, v).sum()) / math.log(10)


def random_threshold(n: int) -> float:
    """T(n) = 1.26 / (1 + exp(-0.89 (log2 n - 2.30))) - 0.31: about the least entropy of n Gaussian 3 x 3 kernels.

    NaN below 4 kernels, for which it was not fitted. Reference: Gavrikov & Keuper 2022, arXiv 2203.15331.
    """
    return 1.26 / (1 + math.exp(-0.89 * (math.log2(n) - 2.30))) - 0.31 if n >= 4 else math.nan


def filter_table(network: nn.Module, size: int = 3) -> list[Layer]:
    """The statistics of every convolution with kernels of `size` on each axis, in the order of the network.

    Raises FokkerError where there is none. Reference: Gavrikov & Keuper 2022, arXiv 2203.15331.
    """
    found = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {size}:
            rows = kernels(module)
            filters = module.weight.detach().to("cpu", torch.float64).flatten(1)
            unit = filters / filters.norm(dim=1, keepdim=True).clamp_min(1e-300)
            cosines = (unit @ unit.T).abs()
            others = max(1, len(unit) * (len(unit) - 1))
            mean = float(cosines.sum() - cosines.diagonal().sum()) / others
            threshold = random_threshold(len(rows)) if rows.shape[1] == 9 else math.nan
            found.append(Layer(name, len(rows), sparsity(rows), variance_entropy(rows), threshold, 1 - mean))
    if not found:
        raise FokkerError(f"this network has no convolution with kernels of {size} on each axis; give another size")
    return found


def scaled(network: nn.Module, size: int = 3) -> Tensor:
    """All kernels (n, positions), each layer divided by its largest weight; layers of zeros are left out."""
    rows = [
        kernels(m)
        for m in network.modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(m.kernel_size) == {size}
    ]
    kept = [r / r.abs().max() for r in rows if float(r.abs().max()) > 0]
    if not kept:
        raise FokkerError(f"this network has no kernels of {size} on each axis that are not zero")
    return torch.cat(kept)


def filter_shift(a: Tensor, b: Tensor, bins: int = 70) -> float:
    """sum_i v_i (KL(P_i | Q_i) + KL(Q_i | P_i)) between two sets of kernels (n, positions), such as `scaled(network)`.

    P_i and Q_i are histograms, on common edges and with half a count added to each bin, of the i-th principal coefficient of
    the pooled kernels, v_i its explained variance. 0 for equal sets; symmetric. Reference: arXiv 2203.15331.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise FokkerError(f"kernels {tuple(a.shape)} and {tuple(b.shape)}; give two tables of kernels of one size")
    pooled = torch.cat([a, b]).double()
    # each set counts the same, whatever its size
    mean = (a.double().mean(0) + b.double().mean(0)) / 2
    spread = sum((s.double() - mean).T @ (s.double() - mean) / len(s) for s in (a, b))
    v, axes = torch.linalg.eigh(torch.as_tensor(spread))
    v = v.clamp_min(0) / v.clamp_min(0).sum()
    total = 0.0
    for share, axis in zip(v.tolist(), axes.T, strict=True):
        low, high = (float(f) for f in (pooled @ axis).aminmax())
        counts = [torch.histc(s.double() @ axis, bins, low, high) + 0.5 for s in (a, b)]
        p, q = (c / c.sum() for c in counts)
        total += share * float(((p - q) * torch.log(p / q)).sum())
    return total
