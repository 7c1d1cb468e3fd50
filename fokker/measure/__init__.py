"""Measurements: a number with its unit, its direction, its sampling error, its floor, and all that it depends on.

THE CONTRACT of a metric. A metric is a frozen dataclass that inherits `Metric` (or `SetMetric`, for samples against real
items or a law); its fields are its options, and every option that changes the number becomes a setting of the `Value` it
returns. Values with different settings refuse to be compared. The number never depends on batches or on hidden random
state. `error` is the standard deviation over new draws of what was sampled, and each metric says how it is estimated;
`floor` is what perfect samples would score.

To add one: write the class with a `name`, and `__call__` (or `estimate`, for a SetMetric). Once its module is imported,
`get("name", option=...)` finds it, `names()` lists it, and unknown options are refused. Nothing else needs an edit.
"""

from fokker.measure.features import PIXELS as PIXELS
from fokker.measure.features import Features as Features
from fokker.measure.features import logistic_regression as logistic_regression
from fokker.measure.frechet import Frechet as Frechet
from fokker.measure.frechet import frechet_distance as frechet_distance
from fokker.measure.image import PSNR as PSNR
from fokker.measure.image import SSIM as SSIM
from fokker.measure.kernel import KID as KID
from fokker.measure.kernel import MMD as MMD
from fokker.measure.kernel import EnergyDistance as EnergyDistance
from fokker.measure.metric import Metric as Metric
from fokker.measure.metric import SetMetric as SetMetric
from fokker.measure.metric import get as get
from fokker.measure.metric import names as names
from fokker.measure.neighbours import Coverage as Coverage
from fokker.measure.neighbours import Density as Density
from fokker.measure.neighbours import Memorised as Memorised
from fokker.measure.neighbours import Precision as Precision
from fokker.measure.neighbours import Recall as Recall
from fokker.measure.paired import Comparison as Comparison
from fokker.measure.paired import compare as compare
from fokker.measure.points import NLL as NLL
from fokker.measure.points import BitsPerDim as BitsPerDim
from fokker.measure.points import ClassAccuracy as ClassAccuracy
from fokker.measure.points import EffectiveSampleSize as EffectiveSampleSize
from fokker.measure.points import EndPointRMS as EndPointRMS
from fokker.measure.points import RelativeError as RelativeError
from fokker.measure.points import TotalVariation as TotalVariation
from fokker.measure.sliced import SlicedWasserstein as SlicedWasserstein
from fokker.measure.value import Value as Value
