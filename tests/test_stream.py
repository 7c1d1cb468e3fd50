"""Streams: slots keep their frames apart, the residual is the paper's equation, skips are bounded."""

import pytest
import torch
from mixtures import dense, normal

import fokker as fk
from fokker.solve.stream import ResidualGuidance, SimilarityFilter, StreamBatch

VP = fk.VP()


def test_a_stream_is_late_by_its_slots_and_forgets_on_reset() -> None:
    denoiser = fk.as_denoiser(lambda x, t, reference: reference, VP)
    stream = StreamBatch(denoiser, (0.5, 0.3, 0.1), (2,), reference=True)
    frames = normal(6, 2)
    out = [stream.push(frame) for frame in frames]
    assert out[0] is None and out[1] is None
    for k in range(2, 6):
        assert out[k] is not None and torch.equal(out[k], frames[k - 2]), "each slot has its own frame as reference"
    stream.reset()
    assert stream.push(frames[0]) is None
    assert stream.nfe == 7
    with pytest.raises(fk.FokkerError, match=r"frame of shape \(3,\)"):
        stream.push(torch.zeros(3))
    with pytest.raises(fk.FokkerError, match="do not decrease"):
        StreamBatch(denoiser, (0.1, 0.3), (2,))


@pytest.mark.parametrize("delta", [1.0, 0.6])
def test_the_residual_is_the_published_equation(delta: float) -> None:
    law, x, ref, t = dense(labels=True), normal(5, 2, seed=1), normal(5, 2, seed=2), 0.4
    denoiser, label = law.denoiser(VP), torch.ones(5, dtype=torch.int64)
    alpha, _, sigma = VP.at(t)
    eps_c, eps_ref = denoiser.predict("eps", x, t, label=label), (x - alpha * ref) / sigma
    eps = delta * eps_ref + 1.4 * (eps_c - delta * eps_ref)
    got = ResidualGuidance(denoiser, 1.4, delta)(x, t, label=label, reference=ref)
    assert torch.allclose(got, (x - sigma * eps) / alpha, atol=1e-12)
    off = ResidualGuidance(denoiser, 1.0)(x, t, label=label)
    assert torch.equal(off, denoiser(x, t, label=label))


def test_onetime_asks_once_more_and_only_within_its_run() -> None:
    denoiser, x = dense(labels=True).denoiser(VP), normal(4, 2, seed=3)
    wrapped = ResidualGuidance(denoiser, 1.4, mode="onetime")
    label = torch.zeros(4, dtype=torch.int64)
    first = fk.run(wrapped, x, solver="ddim", steps=5, label=label)
    assert first.nfe == 6 and wrapped.first is None
    assert torch.equal(first.x0, fk.sample(wrapped, x, solver="ddim", steps=5, label=label))
    with pytest.raises(fk.FokkerError, match="give it as reference="):
        ResidualGuidance(denoiser)(x, 0.5)


def test_a_still_stream_is_processed_every_eleventh_frame() -> None:
    chosen, frame = SimilarityFilter(), normal(1, 8)[0]
    skipped = [chosen.skip(frame) for _ in range(34)]
    assert [k for k, s in enumerate(skipped) if not s] == [0, 11, 22, 33]
    assert not SimilarityFilter().skip(frame)
