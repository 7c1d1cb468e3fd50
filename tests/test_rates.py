"""Shares of the learning rate: a part of the network moves by its share, exactly, whoever asks and however often it stops."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipe import recipe
from test_train import MLP, bits, make, same
from torch import Tensor

from fokker.errors import FokkerError
from fokker.train import Optimiser, Rate, Trainer, load_recipe, train

FIRST, LAST = "denoiser.net.layers.0", "denoiser.net.layers.3"
STEADY = Rate(peak=1e-2, kind="constant", warmup=0)


def trained(rates: dict[str, float], updates: int = 1, **options: Any) -> Trainer:
    optimiser = Optimiser(rates=rates, weight_decay=0.1)
    found = make(MLP(), samples=updates * 32, rate=STEADY, optimiser=optimiser, **options)
    found.run()
    return found


def moves(trainer: Trainer) -> dict[str, Tensor]:
    """How far each parameter went from where it began."""
    began = dict(make(MLP()).module.named_parameters())
    return {name: (p - began[name]).detach() for name, p in trainer.module.named_parameters()}


@pytest.mark.parametrize(
    ("rates", "shares"),
    [
        ({FIRST: 0.25}, {FIRST: 0.25, LAST: 1.0}),
        ({"denoiser": 0.5}, {FIRST: 0.5, LAST: 0.5}),
        # the longest beginning counts, whichever is named first
        ({LAST + ".weight": 0.125, "denoiser.net": 2.0}, {FIRST: 2.0, LAST + ".weight": 0.125, LAST + ".bias": 2.0}),
    ],
)
def test_an_update_moves_a_part_by_its_share(rates: dict[str, float], shares: dict[str, float]) -> None:
    plain, shared = moves(trained({})), moves(trained(rates))
    for name, move in shared.items():
        (share,) = {s for prefix, s in shares.items() if name.startswith(prefix)}
        # weights are below 1: their difference is known to a rounding of float32
        assert torch.allclose(move, share * plain[name], rtol=1e-5, atol=2e-7), name
        assert plain[name].abs().max() > 1e-3


def test_a_share_of_zero_leaves_a_part_to_the_bit_and_of_one_is_none() -> None:
    still = trained({FIRST: 0.0}, updates=10)
    for name, move in moves(still).items():
        assert bool((move == 0).all()) == name.startswith(FIRST), name
    began = make(MLP()).module.state_dict()
    assert all(torch.equal(copy, began[name]) for name, copy in still.ema.copy.items() if name.startswith(FIRST))
    assert same(bits(trained({FIRST: 1.0}, updates=10)), bits(trained({}, updates=10)))


def test_shares_are_kept_by_what_goes_on(tmp_path: Path) -> None:
    rates = {FIRST: 0.1, LAST + ".bias": 3.0}
    whole = trained(rates, updates=20)
    options: dict[str, Any] = {"samples": 640, "rate": STEADY, "optimiser": Optimiser(rates=rates, weight_decay=0.1)}
    make(MLP(), out=tmp_path, **options).run(until=320)
    rest = make(MLP(seed=9), out=tmp_path, **options)
    rest.run()
    assert same(bits(whole), bits(rest)) and rest.state.samples == 640
    assert not same(bits(whole), bits(trained({}, updates=20)))


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"denoiser.net.lay": 0.5}, "did you mean 'denoiser.net.layers'"),
        ({"kick": 0.5}, "trainable parameter's name in rates: 'kick'; accepted: denoiser, denoiser.net,"),
        ({FIRST: -1.0}, "a factor is a number of at least 0"),
        ({FIRST: float("nan")}, "a factor is a number of at least 0"),
        ({FIRST: True}, "a factor is a number of at least 0"),
        ([0.5], "give factors of the learning rate by name"),
    ],
)
def test_what_is_no_share_is_refused(rates: Any, said: str) -> None:
    with pytest.raises(FokkerError) as error:
        trained(rates)
    assert said in str(error.value)


def test_a_recipe_carries_shares_in_either_spelling(tmp_path: Path) -> None:
    wanted = {"denoiser.net.inp": 0.5, "denoiser.net.out": 0.001}
    path = recipe(tmp_path, optimiser={"rates": {"denoiser": {"net": {"inp": 0.5, "out": "1e-3"}}}})
    assert load_recipe(path).optimiser.rates == wanted
    dotted = ["optimiser.rates={denoiser.net.inp: 0.5}", "optimiser.rates.denoiser.net.out=1e-3"]
    assert load_recipe(recipe(tmp_path), dotted).optimiser.rates == wanted
    for override, said in (
        ("optimiser.rates=0.5", "optimiser.rates must be a section with keys"),
        ("optimiser.rates.denoiser=fast", "optimiser.rates.denoiser must be a number, not 'fast'"),
        ("optimiser.rates.denoiser=-1", "a factor is a number of at least 0"),
    ):
        with pytest.raises(FokkerError, match=said):
            load_recipe(recipe(tmp_path), [override])


def test_a_run_goes_on_only_with_its_own_shares(tmp_path: Path) -> None:
    path = recipe(tmp_path, samples=64, optimiser={"rates": {"denoiser.net": 0.5}})
    train(load_recipe(path), quiet=True)
    with pytest.raises(FokkerError, match=r"optimiser.rates.denoiser.net: 0.5 -> 0.25"):
        train(load_recipe(path, ["optimiser.rates.denoiser.net=0.25"]), quiet=True)
