"""Laws: distributions known exactly, on which everything else is judged.

A law knows its denoiser E[x_0 | x_t], score and log-density at every time of every process, its samples, its
probability-flow map and, for mixtures, its posterior under a linear measurement, which is a law again.

A new law subclasses `Law` (in `fokker.laws.law`) and states `belief`, `gradient`, `log_density`, `spread`, `prior`,
`draw`, `mean` and `cov` on flat float64 states; shapes, dtypes, times, anchors, chunks of bounded memory, the Denoiser
and the flow follow.
"""

from fokker.laws.algebra import mixture, product
from fokker.laws.empirical import Empirical
from fokker.laws.law import Law, LawDenoiser, Level
from fokker.laws.mixture import GaussianMixture, PosteriorSampler
from fokker.laws.named import lowrank, ring

__all__ = [
    "Empirical",
    "GaussianMixture",
    "Law",
    "LawDenoiser",
    "Level",
    "PosteriorSampler",
    "lowrank",
    "mixture",
    "product",
    "ring",
]
