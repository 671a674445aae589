"""Training Keras models that survive wrong labels.

A robust method is a rule that writes `sample_weight`: score each example of the batch, turn the scores
into weights, take the ordinary step on the weighted loss. It implements "Provable Robust Learning for
Deep Neural Networks under Agnostic Corrupted Supervision".
"""

import keras

from prl_keras.auditing.check import check
from prl_keras.auditing.estimate import EpsilonEstimate, estimate_epsilon
from prl_keras.auditing.quality import SelectionQuality
from prl_keras.auditing.record import SelectionRecord
from prl_keras.auditing.score_examples import score_examples
from prl_keras.auditing.table import audit
from prl_keras.corruption import Corrupted, corrupt
from prl_keras.epsilon.estimated import EstimatedEpsilon
from prl_keras.losses import Bootstrap
from prl_keras.methods import METHODS, Method, build
from prl_keras.models.co_teaching import CoTeachingModel
from prl_keras.models.consistency import Agreement, EarlyLearning
from prl_keras.models.robust_model import RobustModel
from prl_keras.rules.bare import Bare
from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.epsilon import linear_ramp
from prl_keras.rules.inverse_score import InverseScore
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.mixture_posterior import MixturePosterior
from prl_keras.rules.sigua import Sigua
from prl_keras.rules.trim import Trim
from prl_keras.rules.weight_by_loss import WeightByLoss
from prl_keras.scores.batch_mixing import BatchMixingError
from prl_keras.stopping import LabelWave
from prl_keras.version import __version__

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"prl_keras needs Keras's TensorFlow backend; the backend is {keras.config.backend()!r}. Set the "
        "environment variable KERAS_BACKEND=tensorflow before Keras is imported, or write "
        '"backend": "tensorflow" in ~/.keras/keras.json.'
    )

__all__ = [
    "METHODS",
    "Agreement",
    "Bare",
    "BatchMixingError",
    "Bootstrap",
    "ClipNorm",
    "CoTeachingModel",
    "Corrupted",
    "EarlyLearning",
    "EpsilonEstimate",
    "EstimatedEpsilon",
    "InverseScore",
    "KeepLowest",
    "LabelWave",
    "Method",
    "MixturePosterior",
    "RobustModel",
    "SelectionQuality",
    "SelectionRecord",
    "Sigua",
    "Trim",
    "WeightByLoss",
    "__version__",
    "audit",
    "build",
    "check",
    "corrupt",
    "estimate_epsilon",
    "linear_ramp",
    "score_examples",
    "scores",
]
