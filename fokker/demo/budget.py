"""How much of everything the demonstration does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The sizes of all stages.

    samples      training samples (None: as the recipe says)    snapshots  looks at the model while it trains
    each         guided samples of each class                   unguided   samples that are compared with the data
    evaluations  denoiser calls for those samples
    compared     samples of each class on which solvers meet    calls      at how many denoiser calls
    converged    calls of the reference that they are measured against
    restored     held-out digits to restore                     draws      posterior samples of each
    classified   held-out digits to classify                    noises     noise draws at each level
    """

    samples: int | None = None
    snapshots: int = 9
    each: int = 100
    unguided: int = 1797
    evaluations: int = 20
    compared: int = 10
    calls: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32)
    converged: int = 128
    restored: int = 200
    draws: int = 8
    classified: int = 397
    noises: int = 3


FULL = Budget()

# Every stage in seconds: to see that all works. Its numbers say nothing about the model.
QUICK = Budget(2560, 3, 4, 80, 6, 2, (4, 8), 16, 6, 2, 20, 1)
