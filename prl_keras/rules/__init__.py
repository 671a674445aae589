"""Rules: the scores of a batch in, one weight per example out.

A rule is called as `rule(scores, is_ranked=None, step=0)`:

* `scores`: `[batch]`, higher = more suspect. A score that is not a number ranks worst.
* `is_ranked`: bool `[batch]`; False marks padding, which is neither ranked nor counted and weighs 0.
* `step`: the optimizer step, for an epsilon that is a schedule.

It gives float32 weights `[batch]` that carry no gradient, in the convention of Keras's `sample_weight`: the
loss of the step is the *mean over the batch* of weight times loss. With `k` of `n` examples kept, a kept
example weighs `n / k`, so that the step is the mean over the kept ones and does not shrink as more is
dropped. Shapes are static throughout, as XLA needs them.

A rule may have two attributes that a model asks for:

* `epsilon`: the fraction that it drops, a number or a schedule of the step.
* `takes_labels`: True if it is called with a fourth argument, `labels`, the given classes, int32 `[batch]`.

A new rule is a new file here, and a row in `methods.py` if a method is to use it.
"""

from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.schedules import linear_ramp
from prl_keras.rules.trim import Trim, kept_count

__all__ = ["ClipNorm", "KeepLowest", "Trim", "kept_count", "linear_ramp"]
