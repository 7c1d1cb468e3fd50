"""Diffusion of tokens: sequences of integers that are masked or replaced, and drawn back.

The nouns are those of everything else. A `TokenProcess` noises, a `Denoiser` answers E[x_0 | x_t], where x_0 is one-hot: the
marginal probabilities (batch, length, size) of every token. A solver lays out a `Plan` whose rows are pure steps, and
`fk.sample` runs it with noise that belongs to a sample:

    law = MarkovChain(start, transition, length=6)                    # exact: marginals by forward-backward
    process = TokenProcess(size=4)                                    # masks; replace=0.1 also replaces
    x_0 = fk.sample(law.denoiser(process), process.start(fk.noise((64, 6))), FirstHitting().plan(process, 6))

Wrappers (a cache, a truncated belief) stack as usual. Every categorical draw is made in float64 from 52-bit uniforms:
`fokker.discrete.draw` says why.
"""

from fokker.discrete.denoiser import Remembered as Remembered
from fokker.discrete.denoiser import TokenDenoiser as TokenDenoiser
from fokker.discrete.denoiser import Truncated as Truncated
from fokker.discrete.draw import categorical as categorical
from fokker.discrete.draw import token_entropy as token_entropy
from fokker.discrete.draw import truncated_gumbel_law as truncated_gumbel_law
from fokker.discrete.law import MarkovChain as MarkovChain
from fokker.discrete.process import TokenProcess as TokenProcess
from fokker.discrete.solve import Ancestral as Ancestral
from fokker.discrete.solve import FirstHitting as FirstHitting
