"""Files that are whole or refused, and training that may be killed at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fokker
from fokker import store
from fokker.errors import FokkerError
from fokker.train import Checkpoints, State
from fokker.train.ema import EMA, Average
from fokker.train.optimiser import Optimiser

# --- the file ----------------------------------------------------------------------------------------------------------


def small(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b/c": torch.tensor([True, False]), "n": torch.tensor(7)}
    header: dict[str, object] = {"format": "test", "text": 'a "quoted" ä', "list": [1, 2.5, None]}
    store.write(path, tensors, header)
    return tensors, header


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    tensors, header = small(path)
    read, told = store.read(path)
    assert told == header
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())
    assert list(path.parent.iterdir()) == [path]
    again = tmp_path / "again.safetensors"
    store.write(again, tensors, header)
    assert again.read_bytes() == path.read_bytes()


def test_every_altered_byte_and_every_cut_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    small(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        with pytest.raises(FokkerError) as error:
            store.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FokkerError, match="truncated"):
            store.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FokkerError, match="altered"):
        store.read(path)
    path.write_bytes(whole)
    store.read(path)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FokkerError, match="there is no file"):
        store.read(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FokkerError, match="not from fokker"):
        store.read(tmp_path / "foreign.safetensors")
    with pytest.raises(FokkerError, match="not JSON"):
        store.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"value": float("nan")})
    assert not (tmp_path / "x.safetensors").exists()


# --- the state ---------------------------------------------------------------------------------------------------------


def state(width: int = 3) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    return State(net, Optimiser().build(net), EMA(net, Average()))


def test_state_enumerates_everything_that_evolves() -> None:
    names = state().tensors().keys()
    weights = {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    running = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert names == (
        {f"weights/{n}" for n in weights | running}
        | {f"average/{n}" for n in weights}
        | {f"optimiser/{slot}/{n}" for slot in ("exp_avg", "exp_avg_sq", "step") for n in weights}
        | {"meter"}
    )


def test_a_laid_out_optimiser_has_not_moved() -> None:
    fresh, used = state(), state()
    assert all(torch.equal(a, b) for a, b in zip(fresh.module.parameters(), used.module.parameters(), strict=True))
    assert all(not v.any() for k, v in fresh.tensors().items() if k.startswith("optimiser"))


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "kind"])
def test_loading_wants_n_of_n(tmp_path: Path, fault: str) -> None:
    saved = state()
    tensors = {k: v.detach().clone() for k, v in saved.tensors().items()}
    header = {"format": "fokker checkpoint 1", "samples": 5}
    said = "load it with the configuration"
    if fault == "missing":
        del tensors["average/0.bias"]
        said = f"matches {len(tensors)} of {len(tensors) + 1} fields (missing: average/0.bias; extra: none)"
    elif fault == "extra":
        tensors["lora"] = torch.zeros(1)
        said = "extra: lora"
    elif fault == "shape":
        tensors["weights/0.bias"] = torch.zeros(9)
        said = "weights/0.bias has shape (9,), here it is (3,)"
    else:
        header["format"] = "fokker model 1"
        said = "'fokker model 1', not a 'fokker checkpoint 1'"
    other = state()
    with pytest.raises(FokkerError) as error:
        other.load(tensors, header, "FILE")
    assert said in str(error.value) and str(error.value).startswith("FILE")
    assert other.samples == 0


def test_the_last_k_stay_and_the_newest_whole_one_is_used(tmp_path: Path) -> None:
    checkpoints, one = Checkpoints(tmp_path, keep=3), state()
    for n in (100, 200, 300, 400, 2000):
        one.samples = n
        checkpoints.save(one, {})
    kept = [int(p.stem) for p in checkpoints.paths()]
    assert kept == [300, 400, 2000]
    newest, previous = checkpoints.paths()[-1], checkpoints.paths()[-2]
    newest.write_bytes(newest.read_bytes()[:-10])
    altered = bytearray(previous.read_bytes())
    altered[-1] ^= 1
    previous.write_bytes(bytes(altered))
    found, refused = checkpoints.newest()
    assert found == checkpoints.paths()[0]
    assert len(refused) == 2 and str(newest) in refused[0] and str(previous) in refused[1]
    (tmp_path / "000000000000500.safetensors.tmp").write_bytes(b"half")
    checkpoints.sweep()
    assert len(list(tmp_path.iterdir())) == 3


# --- killed at any moment ------------------------------------------------------------------------------------------------

# A nursery has everything imported and forks one trainer for each line it reads, so that a start costs milliseconds.
NURSERY = """
import os, signal, sys
import torch
from torch import nn
torch.set_num_threads(1)
import accelerate
from fokker.data import Arrays
from fokker.denoiser import NetworkDenoiser
from fokker.process import EDM
from fokker.train import Denoising, Rate, Trainer

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 48), nn.Dropout(0.1), nn.SiLU(), nn.Linear(48, 4))

    def forward(self, x, c):
        return self.layers(torch.cat([x, c[:, None]], 1))

def train(folder, every, updates):
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    Trainer(
        NetworkDenoiser(Net(), EDM(), "edm", 1.0), Arrays({"x": x}, "data"), Denoising(drop=0.1),
        samples=16 * updates, batch=16, out=folder, every=16 * every, log_every=16 * 5, rate=Rate(warmup=160),
        quiet=True, cpu=True,
    ).run()

def die_at(call):
    count = 0
    def dying(original):
        def replaced(*given):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given)
        return replaced
    os.fsync, os.replace = dying(os.fsync), dying(os.replace)

train(None, 1, 2)  # what torch imports at the first step is imported here
for line in sys.stdin:
    folder, every, updates, call = line.split()
    child = os.fork()
    if child == 0:
        try:
            if int(call):
                die_at(int(call))
            train(folder, int(every), int(updates))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Starts trainers in a process that has imported everything already."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fokker.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, every: int, updates: int, call: int = 0) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{folder} {every} {updates} {call}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def whole(self, folder: Path, every: int, updates: int) -> None:
        self.start(folder, every, updates)
        assert self.status() == 0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    assert found.process.stdin
    found.process.stdin.close()
    found.process.wait(10)


def last(folder: Path) -> bytes:
    return Checkpoints(folder / "checkpoints").paths()[-1].read_bytes()


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_killed_at_every_stage_of_saving_it_ends_the_same(nursery: Nursery, tmp_path: Path) -> None:
    nursery.whole(tmp_path / "whole", 1000, 12)
    # a save flushes the file, renames it and flushes the folder: before each of the three calls, of two saves in a row
    for call in range(1, 7):
        nursery.start(tmp_path / "killed", 2, 12, call)
        status = nursery.status()
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert Checkpoints(tmp_path / "killed" / "checkpoints").newest()[1] == []
    nursery.whole(tmp_path / "killed", 2, 12)
    assert last(tmp_path / "killed") == last(tmp_path / "whole")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_killed_twenty_times_it_ends_the_same_to_the_bit(nursery: Nursery, tmp_path: Path) -> None:
    updates, rng = 400, random.Random(0)
    nursery.whole(tmp_path / "whole", 10_000, updates)
    folder = tmp_path / "killed"
    started, saving, kills = 0.0, 0, 0
    while kills < 20:
        child = nursery.start(folder, 2, updates)
        begin = time.monotonic()
        before = len(list(folder.rglob("*.safetensors")))
        if kills % 2:
            # inside a save: as soon as a temporary file is seen
            limit = begin + 5
            while not any((folder / "checkpoints").glob("*.tmp")) and time.monotonic() < limit:
                pass
            saving += bool(list((folder / "checkpoints").glob("*.tmp")))
        else:
            # anywhere, once it had the time to get going
            while started == 0.0 and len(list(folder.rglob("*.safetensors"))) == before:
                time.sleep(0.002)
            started = started or time.monotonic() - begin
            time.sleep(rng.uniform(0, 5 * started))
        os.kill(child, signal.SIGKILL)
        status = nursery.status()
        assert os.WIFSIGNALED(status), "the run was over before it could be killed; make it longer"
        kills += 1
    assert saving >= 3
    reached = int(Checkpoints(folder / "checkpoints").paths()[-1].stem) // 16
    assert 0 < reached < updates
    nursery.whole(folder, 2, updates)
    assert last(folder) == last(tmp_path / "whole")
    assert log(folder) == log(tmp_path / "whole")


def test_after_the_newest_checkpoint_was_damaged_the_run_goes_on_from_the_one_before(
    nursery: Nursery, tmp_path: Path
) -> None:
    nursery.whole(tmp_path / "whole", 10_000, 12)
    nursery.whole(tmp_path / "run", 4, 8)
    path = Checkpoints(tmp_path / "run" / "checkpoints").paths()[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    nursery.whole(tmp_path / "run", 4, 12)
    # the schedule of the first eight updates was another one's: only the counter must have gone on from update 4
    assert [int(p.stem) // 16 for p in Checkpoints(tmp_path / "run" / "checkpoints").paths()] == [4, 8, 12]
