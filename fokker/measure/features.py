"""What two sets are compared in: a named, digested map from items to rows of numbers."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError, unknown


def digest(*tensors: Tensor) -> str:
    """Twelve hexadecimal digits of shapes and contents: the same numbers, the same digest, in any floating type, anywhere."""
    state = hashlib.sha256()
    for x in tensors:
        x = x.detach().cpu().contiguous()
        x = x.double() if x.is_floating_point() else x.long()
        state.update(f"{x.dtype}{tuple(x.shape)}".encode())
        state.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:12]


@dataclass(frozen=True)
class Features:
    """A feature extractor: `name` for people, `digest` for the comparison of settings, `function` (n, ...) -> (n, d).

    Called with items and a chunk size it gives float64 rows on the CPU. The function must treat items one by one, so that
    the result does not depend on the chunks; for networks that means evaluation mode.
    """

    name: str
    digest: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, chunk: int = 512) -> Tensor:
        """Rows (n, d) in float64; raises FokkerError where the function does not give one finite row an item."""
        if chunk < 1:
            raise FokkerError(f"chunk={chunk} is not accepted; use a number of items of at least 1")
        with torch.no_grad():
            rows = torch.cat([self.function(part).detach().to("cpu", torch.float64) for part in torch.split(x, chunk)])
        if rows.ndim != 2 or len(rows) != len(x):
            raise FokkerError(
                f"features {self.name!r} gave shape {tuple(rows.shape)} for {len(x)} items; they must give ({len(x)}, d)"
            )
        bad = int((~rows.isfinite()).any(dim=1).sum())
        if bad:
            raise FokkerError(
                f"{bad} of {len(x)} items are not finite in features {self.name!r}; remove or repair them first"
            )
        return rows

    @classmethod
    def of(cls, network: nn.Module, name: str, function: Callable[[Tensor], Tensor] | None = None) -> "Features":
        """Features of a network, digested by its weights; `function` defaults to the flattened output of the network."""
        network.eval()
        weights = network.state_dict()
        return cls(name, digest(*(weights[k] for k in sorted(weights))), function or (lambda x: network(x).flatten(1)))


PIXELS = Features("pixels", "identity", lambda x: x.flatten(1))


def logistic_regression(items: Tensor, labels: Tensor, name: str = "logreg", inverse_strength: float = 1.0) -> Features:
    """The class log-odds (n, classes) of a multinomial logistic regression on flat items, fitted by scikit-learn.

    As features they measure what a linear classifier sees; as the classifier of `ClassAccuracy` their argmax is the class.
    The fit has no randomness (L-BFGS from zero, penalty |w|^2 / (2 inverse_strength)). labels (n,) are 0 .. classes - 1,
    each present; raises FokkerError otherwise.
    """
    from sklearn.linear_model import LogisticRegression

    classes = sorted(set(labels.tolist()))
    if len(labels) != len(items) or classes != list(range(len(classes))) or len(classes) < 2:
        raise FokkerError(
            f"{len(items)} items with {len(labels)} labels of classes {classes}; give one label an item, from 0 up without "
            "gaps, at least two classes"
        )
    fit = LogisticRegression(C=inverse_strength, max_iter=5000, tol=1e-6)
    fit.fit(items.flatten(1).double().cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.as_tensor(fit.coef_), torch.as_tensor(fit.intercept_)
    if len(classes) == 2:  # scikit-learn keeps one row; class 0 has log-odds 0
        weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
    return Features(name, digest(weight, bias), lambda x: x.flatten(1).to(weight) @ weight.T + bias)


def digits_logistic_regression() -> Features:
    """The logistic regression of scikit-learn's 1,797 real digits, scaled to [-1, 1]: features "digits-logreg"."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return logistic_regression(torch.as_tensor(data.data / 8 - 1), torch.as_tensor(data.target), "digits-logreg")


_NAMED: dict[str, Callable[[], Features]] = {"pixels": lambda: PIXELS, "digits-logreg": digits_logistic_regression}


def get(features: "Features | str") -> Features:
    """Features by name, or the given ones; raises FokkerError for a name that does not exist."""
    if isinstance(features, Features):
        return features
    if features not in _NAMED:
        raise unknown("features", features, _NAMED)
    return _NAMED[features]()
