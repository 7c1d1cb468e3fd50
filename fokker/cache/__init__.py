"""Feature caches: wrappers that let a network skip what it computed a moment ago, without training.

    fast = fk.cache.DeepCache(model.denoiser, refresh=3)
    x_0 = fk.sample(fk.guide.CFG(fast, 3.0), x_1, solver="ddim", steps=50, label=labels)

A cache is a `Wrapper` around any denoiser with one U-Net inside, ours or one of diffusers'. It knows no solver; its memory
is made anew for each run; the network itself is left as it is, for all is done by `fokker.net.taps`. What a run executes is
counted by `fokker.net.cost.macs`, and `fk.cache.compare` times several in turn beside their errors.
"""

from fokker.cache.calls import NetworkCache
from fokker.cache.compare import Cost, compare
from fokker.cache.deepcache import DeepCache, nonuniform
from fokker.cache.propagation import EncoderPropagation, FeatureChange, feature_change, inject_prior
from fokker.cache.surgery import below, encoder, find, skips

__all__ = [
    "Cost",
    "DeepCache",
    "EncoderPropagation",
    "FeatureChange",
    "NetworkCache",
    "below",
    "compare",
    "encoder",
    "feature_change",
    "find",
    "inject_prior",
    "nonuniform",
    "skips",
]
