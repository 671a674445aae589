"""Rules: a function of the scores of a batch that returns one weight per example.

A rule is called as `rule(scores, is_ranked=None, step=0)`:

* `scores`: `[batch]`, higher = more suspect. A non-finite score ranks worst.
* `is_ranked`: bool `[batch]`; False marks padding, which is neither ranked nor counted and weighs 0.
* `step`: the optimizer step, for an epsilon that is a schedule.

It returns float32 weights `[batch]` that carry no gradient, in the convention of Keras's `sample_weight`:
the loss of the step is the *mean over the batch* of weight times loss. With `k` of `n` examples kept, a kept
example weighs `n / k`, so the step is the mean over the kept examples and does not shrink as more are
dropped. All shapes are static, as XLA requires.

A rule may have these attributes, which a model reads:

* `epsilon`: the fraction that it drops, a number or a schedule of the step.
* `ranks`: True if it only compares scores. It must then accept `ties` and, if it takes labels, `classes` (see
  `Trim`).
* `takes_labels`: True if it is called with a fourth argument, `labels`, the given classes, int32 `[batch]`.
* `reads_probability`: True if it takes `exp(-score)` for the probability of the given label. It then goes
  with `score="loss"` and a plain cross-entropy only.
* `most_kept(count)`: the largest number of `count` examples that it keeps, or None if it depends on the
  step. `recompute=True` needs it to run under XLA.

To add a rule, write a frozen dataclass in a new file here, with `register_keras_serializable` and
`SavedFields`, so that it is saved with a model. `ranking.prepare` cleans its scores. To make it
`prl_keras.X`, import it here and in `prl_keras/__init__.py`. A method that uses it is a row in `methods.py`.
A rule that is passed as a score is recognised by its argument `is_ranked`.
"""

from prl_keras.rules.bare import Bare
from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.epsilon import linear_ramp
from prl_keras.rules.inverse_score import InverseScore
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.mixture_posterior import MixturePosterior
from prl_keras.rules.sigua import Sigua
from prl_keras.rules.trim import Trim, kept_count
from prl_keras.rules.weight_by_loss import WeightByLoss

__all__ = [
    "Bare",
    "ClipNorm",
    "InverseScore",
    "KeepLowest",
    "MixturePosterior",
    "Sigua",
    "Trim",
    "WeightByLoss",
    "kept_count",
    "linear_ramp",
]
