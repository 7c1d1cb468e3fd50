"""Several processes make what one makes, bit for bit: the parts of the work do not depend on who is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fokker
from fokker.ranks import Ranks, ranks

SAMPLE = ["-m", "fokker", "sample", "--model", "digits", "-n", "20", "--seed", "0..1", "--batch", "8", "--steps", "4"]


def command(processes: int, *words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fokker.__file__).parents[1])}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    done = subprocess.run([sys.executable, *launch, *words], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_write_the_file_that_one_writes(tmp_path, processes):
    options = ["--solver", "dpmpp-2m-sde", "--label", "0..9", "--out"]
    for n in (1, processes):
        command(n, *SAMPLE, *options, str(tmp_path / f"{n}.safetensors"))
    one, several = ((tmp_path / f"{n}.safetensors").read_bytes() for n in (1, processes))
    assert one == several


def test_alone_everything_is_made_in_order(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = ranks()
    assert team == Ranks() and team.main and team.agreed(7) == 7
    assert team.map([3, 1, 2], lambda n: torch.tensor(n)) == [3, 1, 2]
