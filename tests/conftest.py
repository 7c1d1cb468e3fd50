"""One thread a worker, no network, no window, and the same examples from hypothesis every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fokker", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fokker")
