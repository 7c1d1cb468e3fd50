"""Parts of a set are the whole, whatever the parts; memory decides how large they are and is survived when it runs out."""

import pytest
import torch
from torch import nn

import fokker as fk
from fokker import batches
from fokker.cli import job
from fokker.errors import FokkerError


def test_every_range_is_made_once_and_in_order():
    seen = []

    def part(first, last):
        seen.append((first, last))
        return torch.arange(first, last)

    assert torch.equal(batches.over(10, 4, part), torch.arange(10))
    assert seen == [(0, 4), (4, 8), (8, 10)]


CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, lambda: RuntimeError(CPU)])
def test_out_of_memory_halves_the_batch_and_goes_on(error):
    tried = []

    def part(first, last):
        tried.append(last - first)
        if last - first > 3:
            raise error()
        return torch.arange(first, last)

    assert torch.equal(batches.over(10, 10, part), torch.arange(10))
    assert tried == [10, 5, 3, 3, 3, 1]


def test_a_sample_that_does_not_fit_is_one_sentence_and_other_errors_pass():
    def part(first, last):
        raise torch.OutOfMemoryError

    with pytest.raises(FokkerError, match="one sample does not fit"):
        batches.over(4, 2, part)

    def wrong(first, last):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        batches.over(4, 2, wrong)


def test_a_smaller_way_is_tried_before_giving_up():
    ways = []

    def part(first, last):
        if not ways:
            raise torch.OutOfMemoryError
        return torch.arange(first, last)

    def smaller():
        ways.append("tiles")
        return len(ways) == 1

    assert torch.equal(batches.over(3, 2, part, smaller), torch.arange(3)) and ways == ["tiles"]


class Layers(nn.Sequential):
    """At the peak 8 channels come in and 8 go out."""

    HELD = 2 * 8 * 64 * 64 * 4

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))


def test_the_size_follows_from_what_is_held_at_once(monkeypatch):
    net, x = Layers(), torch.zeros(1, 1, 64, 64)
    monkeypatch.setattr(batches, "free", lambda device: 50 * net.HELD)
    assert batches.size(lambda: net(x)) == 25
    assert batches.size(lambda: net(x), most=7) == 7
    monkeypatch.setattr(batches, "free", lambda device: 10)
    assert batches.size(lambda: net(x)) == 1


def test_what_a_call_remembers_is_real(monkeypatch):
    """A model may keep what it made in the first call, as an empty prompt: measuring must not leave anything else there."""
    kept = []

    def call():
        kept.append(kept[0] if kept else torch.ones(3) + 1)

    batches.size(call)
    assert type(kept[0]) is torch.Tensor and kept[0].tolist() == [2, 2, 2]


def test_what_does_not_fit_is_made_smaller(monkeypatch):
    """One sample takes more than there is until it goes in tiles: nobody waits for the memory to run out."""
    net, x, ways = Layers(), torch.zeros(1, 1, 640, 64), []

    def call():
        return [net(tile) for tile in x.split(64, 2)][-1] if ways else net(x)

    monkeypatch.setattr(batches, "free", lambda device: 10 * net.HELD)
    assert 1 <= batches.size(call, smaller=lambda: not ways and not ways.append("tiles")) <= 5 and ways == ["tiles"]


def test_free_memory_is_that_of_a_machine():
    assert 2**20 < batches.free() < 2**50


def test_samples_do_not_depend_on_the_parts():
    """The noise of a stochastic solver is each sample's own; what is left is the rounding of matrix products."""
    whole = job.run(job.Job("digits", n=7, seeds=(0, 3), solver="dpmpp-2m-sde", steps=4, conditions={"label": ["3", "5"]}))
    parts = job.run(
        job.Job("digits", n=7, seeds=(0, 3), solver="dpmpp-2m-sde", steps=4, conditions={"label": ["3", "5"]}, batch=2)
    )
    assert whole.x0.shape[0] == 14 and whole.nfe == parts.nfe
    assert (whole.x0 - parts.x0).abs().max() < 2e-5


def test_decoding_in_parts_is_decoding(monkeypatch):
    class Half(fk.model.Codec):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def decode(self, x):
            sizes.append(len(x))
            return self.layer(x)

    sizes = []
    model = fk.load("digits")
    model.codec = Half()
    x = fk.noise((10, *model.shape))
    assert len(model.decode(x)) == 10 and max(sizes) == 10
    whole, sizes[:] = model.decode(x), []
    monkeypatch.setattr(batches, "free", lambda device: 3 * 2 * 4 * x[0].numel())
    assert (model.decode(x) == whole).all() and max(sizes) == 3


def test_a_size_and_words_to_move_away_from(tmp_path):
    """Twice the size is a larger picture; moving away from what is asked for gives other pictures, the same way each time."""
    asked = {"model": "sprites", "n": 2, "steps": 2, "conditions": {"prompt": "red circle"}, "guidance": ("cfg:3",)}
    plain, away = job.run(job.Job(**asked)), job.run(job.Job(**asked, negative="blue ring"))
    assert not torch.allclose(plain.x0, away.x0) and torch.equal(job.run(job.Job(**asked, negative="blue ring")).x0, away.x0)
    alone = job.run(job.Job(**asked, negative="blue ring", batch=1))
    assert torch.allclose(alone.x0, away.x0, atol=2e-5)
    assert job.run(job.Job(**asked, size=(32, 16))).x0.shape == (2, 3, 32, 16)
    with pytest.raises(FokkerError, match="give it with --guidance"):
        job.run(job.Job(**{**asked, "guidance": ()}, negative="blue ring"))
