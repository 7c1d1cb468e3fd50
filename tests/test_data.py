"""Data sets: what each embedded one promises, and the keyed order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fokker.data as data
from fokker.errors import FokkerError

# every embedded set at a size that is quick; whatever is not listed is built with its defaults
SMALL = {
    "hyperspectral": [{"size": (12, 16), "bands": 8}],
    "lorenz96": [{"lead": 0.1}],
    "pde": [
        {"frames": 3, "warmup": 2.0},
        {"kind": "burgers", "frames": 3},
        {"frames": 3, "warmup": 1.0, "pairs": True},
    ],
    "photos": [{}, {"channels": 1, "size": (16, 24)}],
    "speech": [{"samples": 512, "vowels": 1}, {"samples": 512, "noise": "pink"}],
    "sprites": [{"size": (16, 24)}, {"objects": 3, "masks": True, "depth": True, "hue": True}, {"alpha": True}],
    "video": [{"frames": 4, "size": (16, 24)}, {"frames": 4, "kind": "digits", "layout": "cthw"}],
    "volume": [
        {"size": (12, 10, 14), "lesions": 0.5, "masks": True},
        {"size": (8, 8, 8), "kind": "ellipsoid"},
        {"size": (12, 6, 6), "kind": "events"},
    ],
    "text": [{}, {"symbols": 4}, {"level": "word"}],
    "gmm": [{}, {"kind": "lowrank"}],
}
CASES = [(name, options) for name in data.names() for options in SMALL.get(name, [{}])]


def case_id(case: object) -> str:
    return case if isinstance(case, str) else "-".join(f"{k}{v}" for k, v in dict(case).items()) or "default"


def test_the_twelve_embedded_sets_are_found_by_name() -> None:
    assert set(data.names()) >= {
        *("gmm", "digits", "photos", "sprites", "video", "speech"),
        *("pde", "lorenz96", "volume", "hyperspectral", "text", "smiles"),
    }


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
class TestEveryEmbeddedSet:
    def test_is_a_function_of_its_seed(self, name: str, options: dict) -> None:
        d, again = data.toy(name, n=10, seed=3, **options), data.toy(name, n=10, seed=3, **options)
        assert d.fingerprint == again.fingerprint
        assert all(torch.equal(a, b) for a, b in zip(d.all().values(), again.all().values()))
        assert data.toy(name, n=10, seed=4, **options).fingerprint != d.fingerprint

    def test_items_do_not_depend_on_how_many_there_are(self, name: str, options: dict) -> None:
        few, many = data.toy(name, n=3, **options), data.toy(name, n=10, **options)
        for key, rows in few.all().items():
            assert torch.equal(rows, many.all()[key][: len(few)]), key

    def test_shapes_ranges_and_names(self, name: str, options: dict) -> None:
        d = data.toy(name, n=6, **options)
        batch = d.batch(range(len(d)))
        assert batch["x"].shape == (len(d), *d.shape)
        assert batch["label"].dtype == torch.int64 and batch["label"].max() < max(len(d.classes), 1)
        if d.vocabulary:
            assert batch["x"].dtype == torch.int64 and batch["x"].min() >= 0 and batch["x"].max() < len(d.vocabulary)
        else:
            assert batch["x"].dtype == torch.float32 and batch["x"].isfinite().all()
        if d.bounds:
            assert batch["x"].min() >= d.bounds[0] and batch["x"].max() <= d.bounds[1]
        for key, condition in d.conditions.items():
            assert batch[key].shape == (len(d), *condition.shape) and batch[key].isfinite().all()
            assert (batch[key].dtype == torch.int64) == condition.discrete
            if condition.discrete:
                assert batch[key].min() >= -1 and batch[key].max() < len(condition.names)
            elif condition.names:
                assert len(condition.names) == condition.shape[-1]
        assert all(len(strings) == len(d) for strings in d.texts.values())

    def test_an_item_is_a_row_of_a_batch(self, name: str, options: dict) -> None:
        d = data.toy(name, n=6, **options)
        batch = d.batch([4, 1, 4])
        for row, item in enumerate((d[4], d[1], d[4])):
            assert set(item) == set(batch) and type(item["label"]) is int
            for key in batch:
                assert torch.equal(batch[key][row], torch.as_tensor(item[key]))
        with pytest.raises(IndexError):
            d[len(d)]
        with pytest.raises(FokkerError, match="the set has items 0 to"):
            d.batch([len(d)])

    def test_train_and_test_share_nothing(self, name: str, options: dict) -> None:
        train, test = (data.toy(name, n=40, split=split, **options) for split in ("train", "test"))
        rows = {r.numpy().tobytes() for r in train.tensors["x"]}
        shared = sum(r.numpy().tobytes() in rows for r in test.tensors["x"])
        # a picture of plain sky, or a short string of few symbols, may come twice from two places
        assert shared == 0 or name in ("photos", "text")
        everything = data.toy(name, n=40, split="all", **options)
        assert len(everything) == len(train)
        with pytest.raises(FokkerError, match="split 'tset'; did you mean 'test'"):
            data.toy(name, n=4, split="tset", **options)

    def test_unknown_options_and_empty_sets_are_refused(self, name: str, options: dict) -> None:
        with pytest.raises(FokkerError, match=f"option of {name} 'sed'; did you mean 'seed'"):
            data.toy(name, n=4, sed=1, **options)
        with pytest.raises(FokkerError, match="n=0"):
            data.toy(name, n=0, **options)


def test_a_misspelt_set_is_named() -> None:
    with pytest.raises(FokkerError, match="did you mean 'digits'"):
        data.open("toy:digit")


# order


@given(n=st.integers(1, 300), seed=st.integers(0, 2**62), epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_is_a_permutation_and_a_pure_function(n: int, seed: int, epoch: int) -> None:
    permutation = data.order(n, seed, epoch)
    assert sorted(permutation.tolist()) == list(range(n))
    assert np.array_equal(permutation, data.order(n, seed, epoch))
    if n > 30:
        assert not np.array_equal(permutation, data.order(n, seed, epoch + 1))
        assert not np.array_equal(permutation, data.order(n, seed + 1, epoch))


def test_orders_are_uniform() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), data.order(5, 0, epoch)] += 1
    # each cell is binomial(4000, 1/5): deviation 25.3; five of them over 25 cells
    assert np.abs(counts - 800).max() < 5 * math.sqrt(4000 * 0.2 * 0.8)


@given(
    n=st.integers(1, 50),
    share=st.integers(1, 7),
    world=st.integers(1, 4),
    steps=st.integers(1, 12),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_ranks_together_take_what_one_process_takes(n: int, share: int, world: int, steps: int, seed: int) -> None:
    batch = share * world
    run = [data.batch_indices(k * batch, batch, n, seed) for k in range(steps)]
    for k, alone in enumerate(run):
        ranks = [data.batch_indices(k * batch, batch, n, seed, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(ranks), alone)
    seen = np.concatenate(run)
    for epoch in range(len(seen) // n):
        assert np.array_equal(seen[epoch * n : (epoch + 1) * n], data.order(n, seed, epoch))
    # one counter: a run that changes its batch size sees the same items in the same order
    assert np.array_equal(data.batch_indices(0, len(seen), n, seed), seen)


@given(many=st.integers(1, 9), window=st.integers(1, 10), seed=st.integers(0, 9), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_shards_are_read_once_an_epoch_and_a_window_at_a_time(many: int, window: int, seed: int, epoch: int) -> None:
    of = np.repeat(np.arange(many), np.arange(1, many + 1))
    n = len(of)
    visited = data.order(n, seed, epoch, data.Shards(of, window))
    assert sorted(visited.tolist()) == list(range(n))
    where = {shard: np.flatnonzero(of[visited] == shard) for shard in range(many)}
    for position in range(n):
        begun = [s for s, at in where.items() if at[0] <= position <= at[-1]]
        assert len(begun) <= window
    if window >= many:
        assert np.array_equal(visited, data.order(n, seed, epoch)), "one window of all is no shards at all"


def test_shards_come_in_another_order_each_epoch_and_are_mixed() -> None:
    of = np.arange(4000) // 100
    shards = data.Shards(of, 4)
    first, second = (data.order(4000, 0, epoch, shards) for epoch in (0, 1))
    assert [of[i] for i in first[:400:40]] != [of[i] for i in second[:400:40]]
    # within a window of 4 shards neighbours are of the same one in a quarter of the cases: 1000 +- 5 x 27
    assert abs((of[first][1:] == of[first][:-1]).sum() - 1000) < 140
    ranks = [data.batch_indices(64, 64, 4000, 0, rank, 4, shards) for rank in range(4)]
    assert np.array_equal(np.concatenate(ranks), first[64:128])
    with pytest.raises(FokkerError, match="shards of the same n items"):
        data.order(4001, 0, 0, shards)


def test_uneven_ranks_are_refused() -> None:
    with pytest.raises(FokkerError, match="multiple of the number of processes"):
        data.batch_indices(0, 10, 50, world=4)
    with pytest.raises(FokkerError, match="give n >= 1"):
        data.order(0)
