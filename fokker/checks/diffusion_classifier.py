"""The class under which a noised sample is denoised best, by errors at noise that all classes share.

Theory: log p(x | c) = const - 1/2 int E|eps - eps_hat|^2 d logSNR, so uniform log-SNR gives calibrated log-likelihoods with an
error that falls as n^-1/2; shared noise removes what classes have in common; classes that are far off can be dropped early.
Exact class-conditional denoisers of a mixture (d = 16, 10 classes) with the Bayes classifier beside; then the digits model
of the zoo on digits that it was not trained on.

Null: every class sees noise of its own.
"""

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome, within
from fokker.data import toy
from fokker.laws import lowrank
from fokker.perceive import DiffusionClassifier

EXPECT = (
    "agreement with Bayes >= 0.95 at 64 samples and >= 0.98 at 256; relative error of centred log-likelihoods <= 0.10 at 256, "
    "times 1.5 to 2.8 from 256 to 64 (theory: 2); unpaired noise at 64 agrees <= paired - 0.1; a staged schedule loses "
    "<= 0.01 of the accuracy at <= 0.5 x the evaluations; accuracy on held-out digits >= 0.90"
)
CLASSES, POINTS, DIGITS = 10, 400, 60


def check(seed: int, null: bool = False) -> Outcome:
    # wide components, so that classes overlap: the Bayes accuracy is about 0.95
    law = lowrank(16, CLASSES, 4, seed=seed, std=0.6, within=0.7)
    x, label = law.sample_labelled(POINTS, seed=seed)
    true = torch.stack([law.log_prob(x, label=k) for k in range(CLASSES)], 1)
    centred = true - true.mean(1, keepdim=True)
    candidates = {"label": torch.arange(CLASSES)}
    denoiser = law.denoiser(fk.VP())

    def scores(samples: int, paired: bool = True, stages: tuple[tuple[int, int], ...] = ()):  # type: ignore[no-untyped-def]
        classifier = DiffusionClassifier(denoiser, candidates, samples, paired=paired and not null, stages=stages)
        return classifier(x, seed)

    def error(logits: torch.Tensor) -> float:
        return float((logits - logits.mean(1, keepdim=True) - centred).norm() / centred.norm())

    few, many, unpaired = scores(64), scores(256), scores(64, paired=False)
    staged = scores(256, stages=((4, 32), (2, 64)))
    agreement = {
        name: float((s.label == true.argmax(1)).double().mean())
        for name, s in {"64": few, "256": many, "unpaired 64": unpaired}.items()
    }
    accuracy = {n: float((s.label == label).double().mean()) for n, s in {"all": many, "staged": staged}.items()}

    model = fk.load("digits")
    held_out = toy("digits", n=DIGITS, seed=seed, split="test").batch(range(DIGITS))
    # from the grey levels of the pixels to shapes alone
    on_digits = DiffusionClassifier(
        model.denoiser, candidates, 32, paired=not null, stages=((4, 8), (2, 16)), span=(-3.0, 3.0)
    )(held_out["x"], seed)
    digits = float((on_digits.label == held_out["label"]).double().mean())
    return Outcome(
        measured={
            "agreement, 64 samples": agreement["64"],
            "agreement, 256 samples": agreement["256"],
            "log-likelihood error, 64 samples": error(few.logits),
            "log-likelihood error, 256 samples": error(many.logits),
            "accuracy, staged": accuracy["staged"],
            "evaluations, staged": staged.nfe,
            "accuracy on held-out digits": digits,
            "evaluations on digits": on_digits.nfe,
        },
        baseline={
            "agreement, unpaired, 64 samples": agreement["unpaired 64"],
            "accuracy of Bayes": float((true.argmax(1) == label).double().mean()),
            "accuracy, 256 samples": accuracy["all"],
            "evaluations, 256 samples": many.nfe,
        },
        criteria=[
            Criterion("agreement with Bayes, 64 samples", agreement["64"], ">=", 0.95),
            Criterion("agreement with Bayes, 256 samples", agreement["256"], ">=", 0.98),
            Criterion("log-likelihood error, 256 samples", error(many.logits), "<=", 0.10),
            *within("error at 64 over error at 256", error(few.logits) / error(many.logits), 1.5, 2.8),
            Criterion("agreement lost by unpaired noise", agreement["64"] - agreement["unpaired 64"], ">=", 0.1),
            Criterion("accuracy lost by stages", accuracy["all"] - accuracy["staged"], "<=", 0.01),
            Criterion("evaluations of stages over all", staged.nfe / many.nfe, "<=", 0.5),
            Criterion("accuracy on held-out digits", digits, ">=", 0.90),
        ],
    )
