"""One thread a worker, no global randomness, and the exact laws that the tests are judged on."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fokker", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fokker")


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    """A test that moves torch's global generator has found a bare torch.randn in the package."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used; give a seed or a generator"
