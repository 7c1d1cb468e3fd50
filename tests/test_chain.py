"""Denoising MCMC: the exact level posterior, the keyed chain, the cost of a sample, and what is refused."""

import itertools
from dataclasses import replace

import pytest
import torch
from mixtures import dense, normal

import fokker as fk
from fokker.solve.chain import ChainState, DenoisingMCMC, LevelPosterior

VE = fk.VE()


def sampler(**options: object) -> DenoisingMCMC:
    law = dense()
    return DenoisingMCMC(law.denoiser(VE), LevelPosterior(law, VE), count=60, **options)  # type: ignore[arg-type]


def test_the_level_posterior_is_the_density_at_each_level() -> None:
    law, x, times = dense(), normal(4, 2), torch.linspace(0, 1, 5, dtype=torch.float64)
    table = LevelPosterior(law, VE)(x, times)
    for k, t in enumerate(times):
        assert torch.allclose(table[:, k], law.log_prob_t(x, float(t), VE), atol=1e-10)


def test_a_sample_costs_its_updates_and_its_run_and_comes_from_the_lowest_visit() -> None:
    chain = sampler(skip=3, steps=3)
    state = chain.start((6, 2), seed=1, burn=2)
    first, second = itertools.islice(chain.samples(state, seed=1), 2)
    assert first.nfe == 3 + 5
    visited = list(itertools.accumulate(range(3), lambda s, _: chain.update(s, 1), initial=state))[1:]
    assert torch.equal(first.visit.level, torch.stack([v.level for v in visited]).amin(0))
    assert second.visit.updates == state.updates + 6, "the chain goes on from its last state"


def test_a_chain_is_the_same_alone_and_in_a_batch() -> None:
    chain = sampler()
    both = next(chain.samples(chain.start((3, 2), seed=2, burn=3), seed=2))
    alone = next(chain.samples(chain.start((1, 2), seed=2, burn=3, ids=[2]), seed=2, ids=[2]))
    assert torch.allclose(both.x0[2], alone.x0[0], atol=1e-9)


def test_the_lowest_and_the_highest_level_can_be_finished() -> None:
    chain = sampler()
    done = chain.finish(ChainState(normal(2, 2), torch.tensor([0, 59])))
    assert bool(torch.isfinite(done.x0).all())


def test_impossible_options_are_refused() -> None:
    law = dense()
    with pytest.raises(fk.FokkerError, match="variance-exploding"):
        DenoisingMCMC(law.denoiser(fk.VP()), LevelPosterior(law, fk.VP()))
    with pytest.raises(fk.FokkerError, match="give eta > 0"):
        replace(sampler(), eta=0.0)
