"""How far a run through fokker is from the pipeline's own, for every kind of pipeline: tiny ones with random weights.

    python bench/adapters.py

Prints, for each kind and solver, the largest difference of the final latents relative to the largest of them.
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import fokker as fk


def main() -> None:
    from test_adapt import adapted, ours, schedulers, theirs
    from tiny_pipelines import KINDS, make

    print(f"{'kind':<10}{'network':<24}{'solver':<10}{'scheduler':<32}{'steps':>5}{'difference':>12}")
    for kind in KINDS:
        pipeline = make(kind)
        net = getattr(pipeline, "unet", None) or pipeline.transformer
        x = fk.noise((2, *adapted(kind).shape), seed=5)
        for solver, scheduler, steps in schedulers(kind):
            wanted = theirs(kind, scheduler, steps, x)
            off = float((ours(kind, scheduler, steps, x, solver) - wanted).abs().max() / wanted.abs().max())
            print(f"{kind:<10}{type(net).__name__:<24}{solver:<10}{type(scheduler).__name__:<32}{steps:>5}{off:>12.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
