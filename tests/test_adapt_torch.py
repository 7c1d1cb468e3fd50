"""Any module as a denoiser: whatever it predicts, however it is told the noise level, and on whose scale."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker.errors import FokkerError
from fokker.process import TableVP

LAW = fk.laws.lowrank(dim=6, components=3, rank=2, seed=0)
BETAS = torch.linspace(1e-4, 0.02, 500, dtype=torch.float64)


class Net(nn.Module):
    """A module that knows the law: it finds t from what it is told, and predicts `kind`."""

    def __init__(self, process: fk.Process, kind: str, time_of: Any, extra: int = 0) -> None:
        super().__init__()
        self.process, self.kind, self.time_of, self.extra = process, kind, time_of, extra
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, told: Tensor) -> Any:
        denoiser = LAW.denoiser(self.process)
        t = float(self.time_of(told[0].double()))
        wide = x.double()
        out = denoiser(wide, t) if self.kind == "x0" else denoiser.predict(self.kind, wide, t)
        if self.extra:
            out = torch.cat([out, torch.ones_like(out)], 1)
        return out.to(x.dtype)


def check(denoiser: fk.Denoiser, process: fk.Process, tolerance: float = 1e-5) -> None:
    x_0 = LAW.sample(5, seed=2).float()
    for t in (0.8, 0.4, 0.1):
        x = process.add_noise(x_0, fk.noise((5, 6), seed=3), t)
        gain = max(1.0, float(process.sigma(t) / process.alpha(t)))
        torch.testing.assert_close(denoiser(x, t), LAW.denoiser(process)(x, t), rtol=0, atol=tolerance * gain)
        per_sample = denoiser(x, torch.full((5,), t, dtype=torch.float64))
        torch.testing.assert_close(per_sample, denoiser(x, t), rtol=0, atol=tolerance * gain)


TABLE = TableVP(tuple(BETAS.tolist()))
CASES: dict[str, tuple[fk.Process, str, str | None, Any]] = {
    "betas, eps": (TABLE, "eps", None, lambda c: (c + 1) / 500),
    "betas, v": (TABLE, "v", "row", lambda c: (c + 1) / 500),
    "flow": (fk.Flow(), "flow", None, lambda c: c),
    "flow, thousands": (fk.Flow(), "flow", "1000t", lambda c: c / 1000),
    "score": (fk.VE(), "score", "sigma", lambda c: torch.log(c / 0.01) / torch.log(torch.tensor(5000.0).double())),
    "x0": (fk.Cosine(), "x0", "t", lambda c: c),
    "c_noise": (fk.VP(), "v", None, lambda c: fk.VP().time(-8 * c)),
    "c_noise by name": (fk.VP(), "v", "c_noise", lambda c: fk.VP().time(-8 * c)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module_that_knows_the_law_is_its_denoiser(name: str) -> None:
    process, kind, clock, time_of = CASES[name]
    given: Any = BETAS if name == "betas, eps" else process
    for extra in (0, 1) if kind in ("eps", "v") else (0,):
        net = Net(process, kind, time_of, extra)
        denoiser = fk.from_torch(net, given, kind, clock=clock, learned_variance=bool(extra))
        assert denoiser.process.config == process.config
        check(denoiser, process)


class EDMNet(nn.Module):
    """The call of EDM's networks and of k-diffusion's wrappers: D(x_0 + sigma eps; sigma, condition)."""

    def __init__(self, low: Any = 0.002, high: Any = 80.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = low, high
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, force: bool = False) -> Tensor:
        assert x.shape[:1] == sigma.shape
        shift = 0.0 if class_labels is None else class_labels.sum(1, keepdim=True)
        exact = LAW.denoiser(fk.EDM())
        return torch.cat([exact(a[None].double(), float(s) / 80) for a, s in zip(x, sigma)]).to(x.dtype) + shift


def test_networks_that_state_their_noise_levels() -> None:
    denoiser = fk.from_torch(EDMNet())
    assert denoiser.process.config == fk.EDM().config and denoiser.prediction == "x0"
    check(denoiser, fk.EDM(), tolerance=1e-4)
    assert fk.from_torch(EDMNet(0, float("inf"))).process.config == fk.EDM().config
    assert fk.from_torch(EDMNet(torch.tensor(0.03), torch.tensor(14.6))).process.config["sigma_max"] == pytest.approx(14.6)
    # one-hot classes: zeros are none, as these networks have it
    x = denoiser.process.start(fk.noise((5, 6)))
    one_hot = torch.eye(5)
    guided = fk.guide.CFG(denoiser, 3.0)(x, 0.1, class_labels=one_hot)
    torch.testing.assert_close(guided, denoiser(x, 0.1) + 3.0, rtol=0, atol=1e-4)
    assert denoiser.conditions == ("class_labels", "force")


class Bare(nn.Module):
    """What stands inside EDM's preconditioning."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        sigma = torch.exp(4 * c.double())[:, None]
        size = (sigma**2 + 0.25) ** 0.5
        x_0 = LAW.denoiser(fk.EDM())(x.double() * size, float(sigma[0]) / 80)
        return ((x_0 - 0.25 / size * x.double()) / (sigma * 0.5 / size)).to(x.dtype)


def test_the_network_inside_edm_s_preconditioning() -> None:
    check(fk.from_torch(Bare(), fk.EDM(), "edm", sigma_data=0.5), fk.EDM(), tolerance=1e-4)
    # which depends on the process by its log-SNR only
    check(fk.from_torch(Bare(), fk.VP(), "edm", sigma_data=0.5), fk.VP(), tolerance=1e-3)


class Labelled(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table = kind, nn.Embedding(4, 1)
        nn.init.constant_(self.table.weight, 0.0)
        with torch.no_grad():
            self.table.weight[:, 0] = torch.arange(4.0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, label: Tensor | None = None) -> Any:
        out = x + (self.table(label) if label is not None else 0.0)
        return (out, None) if self.kind == "tuple" else type("Output", (), {"sample": out}) if self.kind == "object" else out


@pytest.mark.parametrize("kind", ["tuple", "object", "tensor"])
def test_what_comes_out_and_what_stands_for_none(kind: str) -> None:
    denoiser = fk.from_torch(Labelled(kind), fk.Flow(), "x0", null={"label": 3})
    x, label = torch.zeros(2, 5), torch.tensor([1, -1])
    assert denoiser(x, 0.5, label=label)[:, 0].tolist() == [1.0, 3.0]  # -1 is none
    guided = fk.guide.CFG(denoiser, 2.0)(x, 0.5, label=torch.tensor([1, 0]))
    assert guided[:, 0].tolist() == [3 + 2 * (1 - 3), 3 + 2 * (0 - 3)]
    embedded = fk.from_torch(Labelled(kind), fk.Flow(), "x0", null={"label": torch.tensor([2, 2])})
    assert torch.equal(embedded.null(label=label)["label"], torch.tensor([2, 2]))


def test_refusals() -> None:
    net = nn.Linear(3, 3)
    for arguments, said in (
        (dict(net=net), "states no sigma_min and sigma_max; give process= and prediction="),
        (dict(net=net, process=fk.VP()), "unknown prediction 'None'"),
        (dict(net=net, process=fk.VP(), prediction="epsilon"), "unknown prediction 'epsilon'; did you mean 'eps'"),
        (dict(net=net, process=fk.VP(), prediction="eps", clock="row"), "clock='row' needs betas"),
        (dict(net=net, process=fk.VP(), prediction="eps", clock="rows"), "unknown clock 'rows'"),
        (dict(net=net, process=[0.1, 2.0], prediction="eps"), "betas must be a list"),
        (dict(net=lambda x, t: x, process=fk.VP(), prediction="eps"), "is no torch module; use fk.as_denoiser"),
        (dict(net=EDMNet(), prediction="eps"), "give process= beside prediction"),
    ):
        with pytest.raises(FokkerError, match=said):
            fk.from_torch(**arguments)
    x = torch.zeros(2, 6)
    with pytest.raises(FokkerError, match="channels came out"):
        fk.from_torch(Net(fk.Flow(), "flow", lambda c: c), fk.Flow(), "flow", learned_variance=True)(x, 0.5)
    with pytest.raises(FokkerError, match=r"gave \(2, 12\) for x of \(2, 6\)"):
        fk.from_torch(Net(fk.Flow(), "flow", lambda c: c, 1), fk.Flow(), "flow")(x, 0.5)
