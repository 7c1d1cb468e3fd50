"""Diffusion in a codec's space: autoencoders that are trained here, data sets and models in their latents.

`KLAutoencoder` is a codec (`fokker.codec`), `fit` trains it and measures its scale, `Encoded` is a data set in its space and
`latent_model` a model there; solvers, guidance, editing and restoration need to know nothing of it. `DiffusionAutoencoder` is a
codec whose decoder generates, and `learn` trains it.
"""

from fokker.latent.autoencoder import DiffusionAutoencoder, slerp
from fokker.latent.coded import Coded, GradientEstimator
from fokker.latent.encoded import Encoded, latent_model
from fokker.latent.fit import Autoencoding, Reconstruction, fit
from fokker.latent.kl import KLAutoencoder
from fokker.latent.learn import Direction, Learning, learn
from fokker.latent.linear import LinearCodec
from fokker.latent.refiner import GeneratorRefiner, Rough
from fokker.latent.semantic import SemanticEncoder

__all__ = [
    "Autoencoding",
    "Coded",
    "DiffusionAutoencoder",
    "Direction",
    "Encoded",
    "GeneratorRefiner",
    "GradientEstimator",
    "KLAutoencoder",
    "Learning",
    "LinearCodec",
    "Reconstruction",
    "Rough",
    "SemanticEncoder",
    "fit",
    "latent_model",
    "learn",
    "slerp",
]
