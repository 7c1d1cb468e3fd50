"""Classifier guidance with an ordinary classifier of clean data: on the denoised estimate, smoothed, with two temperatures."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise
from fokker.process import Process, Time, as_time, expand

TARGETS = ("x0_hat", "x_t")
Classifier = Callable[..., Tensor]  # clean data (n, ...) -> logits (n, classes); of x_t and t if told so


class ClassifierControl(Wrapper):
    """The belief moved along the gradient of a classifier's log-probability of the wanted class.

        g = grad log [ exp(tau_joint f_y(x)) / sum_k exp(tau_marginal f_k(x)) ],  f the logits
        score <- score + strength (1 + gamma sin(pi t) max Sigma / Sigma_t) g

    On "x0_hat" the gradient is taken at the denoised estimate, which is not differentiated through: it costs the classifier
    alone, and the classifier sees what it was trained on. Sigma_t is the variance of an ancestral step, so that the second term
    is a sine-shaped extra weight. On "x_t" the classifier is asked at x_t (and t, with `timed`): classical classifier guidance.

    classifier    a function of clean data (n, ...) to logits (n, classes), or 'module:Class' of the user's own
    label         the wanted class, one for all or (batch,); without it the run's condition `label`
    strength      0 is off
    tau_joint, tau_marginal  temperatures of numerator and denominator; 1 and 1 are the posterior. Smaller marginal ones favour
                  the joint: 0.5 of the joint for DDPM, 0 for EDM (a smaller strength then)
    gamma         0.3 in the paper; 0 leaves the sine out
    smooth        beta of the Softplus that stands for every nn.ReLU of the classifier: 3 for DDPM, 5 for EDM; 0 leaves them

    Gradients are in units of the state at unit variance, x_t / sqrt(alpha^2 + sigma^2), as in the paper's variance-preserving
    model. Raises FokkerError for an unknown target or where no class is wanted. Reference: Ma, Hu, Wang, Sun 2023, arXiv
    2310.11311 (EluCD); Dhariwal & Nichol 2021, arXiv 2105.05233.
    """

    def __init__(
        self,
        inner: Denoiser,
        classifier: Classifier | str,
        label: int | Tensor | None = None,
        strength: float = 1.0,
        target: str = "x0_hat",
        tau_joint: float = 1.0,
        tau_marginal: float = 0.5,
        gamma: float = 0.3,
        smooth: float = 3.0,
        timed: bool = False,
    ) -> None:
        super().__init__(inner)
        if target not in TARGETS:
            raise unknown("target", target, TARGETS)
        if not smooth >= 0 or not gamma >= 0:
            raise FokkerError(f"smooth={smooth}, gamma={gamma} are not accepted; use numbers of at least 0")
        if isinstance(classifier, str):
            from fokker.catalogue.entry import build, load_user_object

            classifier = build(load_user_object(classifier), classifier, (), {})
        assert callable(classifier)
        smoothed: Classifier = smooth_activations(classifier, smooth) if isinstance(classifier, nn.Module) else classifier
        self.classifier = smoothed
        self.label, self.strength, self.target, self.timed = label, float(strength), target, timed
        self.tau_joint, self.tau_marginal, self.gamma = float(tau_joint), float(tau_marginal), float(gamma)
        self.stackable = self.stackable and not (isinstance(label, Tensor) and label.ndim)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        if self.strength == 0:
            return belief
        g = self.gradient(x_t, t, belief, **cond)
        alpha, _, sigma = self.process.coefficients(t, x_t)
        extra = 1 + self.gamma * _extra(self.process, t, x_t) if self.gamma else 1.0
        alpha = alpha.clamp_min(1e-6) if isinstance(alpha, Tensor) else max(alpha, 1e-6)
        moved: Tensor = belief + self.strength * extra * sigma**2 / alpha * g
        return moved

    def gradient(self, x_t: Tensor, t: Time, belief: Tensor, **cond: Cond) -> Tensor:
        """g as a term of the score at x_t, (batch, ...)."""
        label = self.label if self.label is not None else cond.get("label")
        if label is None:
            raise FokkerError("no class is wanted; give label= to the guidance or to the run")
        wanted = torch.as_tensor(label, device=x_t.device).expand(len(x_t))
        with torch.enable_grad():
            x = (belief if self.target == "x0_hat" else x_t).detach().requires_grad_()
            logits = _asked(self.classifier, x, t if self.timed else None).to(torch.float64)
            own = logits.gather(1, wanted.clamp_min(0)[:, None])[:, 0]
            value = self.tau_joint * own - torch.logsumexp(self.tau_marginal * logits, 1)
            # samples without a class (-1) are left alone
            (g,) = torch.autograd.grad((value * (wanted >= 0)).sum(), x)
        if self.target == "x_t":
            return g
        alpha, _, sigma = self.process.coefficients(t, x_t)
        out: Tensor = g / (alpha**2 + sigma**2) ** 0.5
        return out


def _asked(classifier: Classifier, x: Tensor, t: Time | None) -> Tensor:
    """Logits, the classifier being asked in its own dtype."""
    parameter = next(classifier.parameters(), x) if isinstance(classifier, nn.Module) else x
    given = x.to(parameter.dtype)
    return classifier(given) if t is None else classifier(given, t)


@functools.lru_cache(maxsize=64)
def _largest(process: Process) -> float:
    return float(_variance(process, torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]).max())


def _variance(process: Process, t: Tensor) -> Tensor:
    """Sigma_t, the variance of an ancestral step of 1/1000 to t from the state at unit variance."""
    before = (t - 1e-3).clamp_min(1e-6)
    # a bridge has neither signal nor noise at t = 1
    squares = [(process.alpha(v) ** 2, process.sigma(v) ** 2) for v in (t, before)]
    kept, kept_before = (a / (a + s).clamp_min(1e-300) for a, s in squares)
    out: Tensor = (1 - kept / kept_before.clamp_min(1e-300)).clamp_min(0) * (1 - kept_before) / (1 - kept).clamp_min(1e-12)
    return out


def _extra(process: Process, t: Time, x: Tensor) -> float | Tensor:
    """sin(pi t) max Sigma / Sigma_t, to multiply x with."""
    time = as_time(t)
    out = torch.sin(math.pi * time) * _largest(process) / _variance(process, time).clamp_min(1e-12)
    return float(out) if out.ndim == 0 else expand(out, x).to(x)


def smooth_activations(module: nn.Module, beta: float = 3.0) -> nn.Module:
    """A copy with Softplus(beta) for every nn.ReLU, nested ones too, in evaluation mode; beta 0 changes no activation.

    A gradient of ReLUs is constant in pieces; Softplus follows the boundary. Weights are copied, the original is not touched.
    """
    out = copy.deepcopy(module).eval().requires_grad_(False)
    if beta and isinstance(out, nn.ReLU):
        return nn.Softplus(beta=beta)
    for parent in list(out.modules()) if beta else []:
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(beta=beta))
    return out


@dataclass(frozen=True)
class Calibration:
    """Expected calibration errors of a classifier at noise times, and their mean over the times (the integral error)."""

    times: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def integral(self) -> float:
        return sum(self.errors) / len(self.errors)


def calibration_curve(
    classifier: Classifier,
    denoiser: Denoiser,
    data: Tensor,
    labels: Tensor,
    times: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8),
    target: str = "x0_hat",
    smooth: float = 0.0,
    bins: int = 15,
    seed: int = 0,
) -> Calibration:
    """How far the classifier's confidence is from its accuracy on noised `data` (n, ...) with `labels` (n,).

    On "x0_hat" it sees the denoised estimate, on "x_t" the noised state. It ranks classifiers before any sampling. The error at
    a time is sum_b |accuracy_b - confidence_b| n_b / n over `bins` of confidence.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    asked = smooth_activations(classifier, smooth) if isinstance(classifier, nn.Module) else classifier
    errors = []
    for k, t in enumerate(times):
        eps = noise(tuple(data.shape), seed, stream="measure", index=k, dtype=data.dtype, device=data.device)
        x_t = denoiser.process.add_noise(data, eps, t)
        with torch.no_grad():
            seen = denoiser(x_t, t) if target == "x0_hat" else x_t
            confidence, guess = torch.softmax(_asked(asked, seen, None).to(torch.float64), 1).max(1)
        hit, which = (guess == labels).to(torch.float64), (confidence * bins).long().clamp(max=bins - 1)
        gap = torch.zeros(bins, dtype=torch.float64, device=data.device).index_add(0, which, hit - confidence)
        errors.append(float(gap.abs().sum()) / len(data))
    return Calibration(tuple(times), tuple(errors))
