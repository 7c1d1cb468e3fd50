"""Diffusion in a codec's space: autoencoders that are trained here, data sets and models in their latents.

`KLAutoencoder` is a codec (`fokker.codec`), `fit` trains it and measures its scale, `Encoded` is a data set in its space and
`latent_model` a model there; solvers, guidance, editing and restoration need to know nothing of it.
"""

from fokker.latent.encoded import Encoded, latent_model
from fokker.latent.fit import Autoencoding, Reconstruction, fit
from fokker.latent.kl import KLAutoencoder
from fokker.latent.linear import LinearCodec

__all__ = ["Autoencoding", "Encoded", "KLAutoencoder", "LinearCodec", "Reconstruction", "fit", "latent_model"]
