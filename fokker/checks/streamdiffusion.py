"""StreamDiffusion: a stream batch, residual guidance, and a filter of like frames.

Theory: with fixed noise per slot the stream is denoising frame by frame, n - 1 frames late, at one call a frame instead of n.
The residual guidance costs no further call and pushes towards the condition; how far it leaves the data is reported. Frames
are skipped with the probability that the formula gives, at most 10 in a row.

Null: the slots' noises belong to another seed, and the residual is off (scale 1).
"""

import math

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._mixture import mixture
from fokker.data.toys import video
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.solve.stream import ResidualGuidance, SimilarityFilter, StreamBatch

EXPECT = (
    "the stream equals sequential denoising, n - 1 frames later, to 1e-5 at exactly 1 call a frame; residual guidance 1.4 "
    "raises the target's probability by >= 0.05 with n calls; skip rates within 3 standard errors, never over 10 in a row"
)
TIMES = (0.5, 0.35, 0.2, 0.1)
PROCESS, DRAWS = fk.VP(), 10_000


def streams(seed: int, null: bool) -> tuple[float, float, float]:
    """(largest difference to sequential denoising, calls a frame of the stream, calls a frame one by one)."""
    frames = video.build(n=1, seed=seed, frames=16, size=(16, 16)).tensors["x"][0].to(torch.float64)
    others = video.build(n=4, seed=100 + seed, frames=16, size=(16, 16)).tensors["x"].flatten(0, 1).to(torch.float64)
    denoiser = GaussianMixture(torch.ones(len(others)), others, 0.05).denoiser(PROCESS)
    shape = tuple(frames.shape[1:])
    stream = StreamBatch(denoiser, TIMES, shape, seed + 1 if null else seed)
    out = [stream.push(frame) for frame in frames]
    eps, worst, calls = noise((len(TIMES), *shape), seed, dtype=torch.float64), 0.0, 0
    for i, frame in enumerate(frames[: len(frames) - len(TIMES) + 1]):
        x = frame[None]
        for k, t in enumerate(TIMES):
            x = denoiser(PROCESS.add_noise(x, eps[k : k + 1], t), t)
            calls += 1
        late = out[i + len(TIMES) - 1]
        worst = max(worst, math.inf if late is None else float((late - x[0]).abs().max()))
    withheld = all(v is None for v in out[: len(TIMES) - 1])
    return worst if withheld else math.inf, stream.nfe / len(frames), calls / (len(frames) - len(TIMES) + 1)


def edits(seed: int, null: bool) -> dict[str, tuple[float, float, float]]:
    """Of an edit from class 0 to class 1: (target probability, mean log-density, evaluations) by method."""
    plain = mixture(8, 6, seed, (0.3, 0.6))
    law = GaussianMixture(plain.weights, plain.means, plain.covs, torch.arange(6) % 2)
    source = law.sample(512, seed, label=0)
    # a weak conditional model: the target class is only three times as likely as without the condition
    weak = math.log(3.0) * (torch.arange(6) % 2).to(torch.float64).expand(512, 6)
    x = PROCESS.add_noise(source, noise((512, 8), seed, dtype=torch.float64), 0.3)
    denoiser = law.denoiser(PROCESS)

    def judged(wrapped: fk.Denoiser, **more: Tensor) -> tuple[float, float, float]:
        trace = fk.run(wrapped, x, solver="ddim", grid="uniform", steps=4, start=0.3, end=0, logits=weak, **more)
        share = law.responsibilities(trace.x0)[:, torch.arange(6) % 2 == 1].sum(1).mean()
        return float(share), float(law.log_prob(trace.x0).mean()), trace.nfe

    return {
        "no guidance": judged(denoiser),
        "self": judged(ResidualGuidance(denoiser, 1.0 if null else 1.4), reference=source),
        "onetime": judged(ResidualGuidance(denoiser, 1.4, mode="onetime")),
        "CFG 2": judged(fk.guide.CFG(denoiser, 2.0)),
    }


def skips(seed: int, cosine: float, n: int = DRAWS) -> tuple[float, float]:
    """(share of skipped frames at this cosine, longest run of skips when nothing moves)."""
    chosen, still = SimilarityFilter(seed=seed), SimilarityFilter(seed=seed)
    pair = torch.linalg.qr(noise((64, 2), seed, stream="check", dtype=torch.float64))[0]
    chosen.skip(pair[:, 0])
    near = cosine * pair[:, 0] + math.sqrt(1 - cosine**2) * pair[:, 1]
    skipped, row, longest = 0, 0, 0
    for _ in range(50):
        row = row + 1 if still.skip(near) else 0
        longest = max(longest, row)
    for _ in range(n):
        chosen.last, chosen.row = pair[:, 0], 0
        skipped += chosen.skip(near)
    return skipped / n, float(longest)


def check(seed: int, null: bool = False) -> Outcome:
    worst, calls, one_by_one = streams(seed, null)
    found = edits(seed, null)
    criteria = [
        Criterion("stream against sequential", worst, "<=", 1e-5),
        Criterion("calls a frame", calls, "==", 1.0),
        Criterion("target probability gained", found["self"][0] - found["no guidance"][0], ">=", 0.05),
        exactly("residual guidance costs no call", found["self"][2] == found["no guidance"][2]),
    ]
    measured = {"stream against sequential": worst, "calls a frame": calls}
    for cosine in (0.97, 0.985, 0.995):
        rate, longest = skips(seed, cosine)
        chance = max(0.0, (cosine - 0.98) / 0.02)
        criteria.append(
            Criterion(f"skip rate at {cosine}", abs(rate - chance), "<=", 3 * math.sqrt(chance * (1 - chance) / DRAWS))
        )
        measured[f"skip rate at {cosine}"] = rate
    criteria.append(Criterion("longest run of skips", longest, "<=", 10))
    measured |= {"longest run of skips": longest}
    for name in ("self", "onetime"):
        measured |= {f"target probability, {name}": found[name][0], f"log-density, {name}": found[name][1]}
    baseline = {"calls a frame, one by one": one_by_one}
    for name in ("no guidance", "CFG 2"):
        baseline |= {f"target probability, {name}": found[name][0], f"log-density, {name}": found[name][1]}
        baseline[f"evaluations, {name}"] = found[name][2]
    return Outcome(measured, baseline, criteria)
