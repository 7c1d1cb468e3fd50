"""What a denoiser knows about given samples: classes from its errors, features from its activations.

Consumers of a `Denoiser`, not samplers: nothing here changes a belief or a plan.
"""

from fokker.perceive.classifier import DiffusionClassifier as DiffusionClassifier
from fokker.perceive.classifier import Scores as Scores
from fokker.perceive.features import FeatureExtractor as FeatureExtractor
from fokker.perceive.features import Probes as Probes
from fokker.perceive.features import sweep as sweep
