"""Training Keras models that survive wrong labels.

A robust method is a rule that writes `sample_weight`: score each example of the batch, turn the
scores into weights, take the ordinary step on the weighted loss. After "Provable Robust Learning for
Deep Neural Networks under Agnostic Corrupted Supervision".
"""

from prl_keras import scores
from prl_keras.audit import audit
from prl_keras.checks import BatchMixingError
from prl_keras.co_teaching import CoTeachingModel
from prl_keras.corruption import Corrupted, corrupt
from prl_keras.estimated_epsilon import EstimatedEpsilon
from prl_keras.losses import Bootstrap
from prl_keras.methods import METHODS, Method, build
from prl_keras.noise_rate import EpsilonEstimate, estimate_epsilon
from prl_keras.preflight import check
from prl_keras.robust_model import RobustModel
from prl_keras.rules import ClipNorm, KeepLowest, Trim, linear_ramp
from prl_keras.scoring import score_examples
from prl_keras.selection_quality import SelectionQuality
from prl_keras.selection_record import SelectionRecord

__all__ = [
    "METHODS",
    "BatchMixingError",
    "Bootstrap",
    "ClipNorm",
    "CoTeachingModel",
    "Corrupted",
    "EpsilonEstimate",
    "EstimatedEpsilon",
    "KeepLowest",
    "Method",
    "RobustModel",
    "SelectionQuality",
    "SelectionRecord",
    "Trim",
    "audit",
    "build",
    "check",
    "corrupt",
    "estimate_epsilon",
    "linear_ramp",
    "score_examples",
    "scores",
]
