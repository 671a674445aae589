"""Rules: the scores of a batch in, one weight per example out.

A rule is called as `rule(scores, is_ranked=None, step=0)`:

* `scores`: `[batch]`, higher = more suspect. A score that is not a number ranks worst.
* `is_ranked`: bool `[batch]`; False marks padding, which is neither ranked nor counted and weighs 0.
* `step`: the optimizer step, for an epsilon that is a schedule.

It gives float32 weights `[batch]` that carry no gradient, in the convention of Keras's `sample_weight`: the
loss of the step is the *mean over the batch* of weight times loss. With `k` of `n` examples kept, a kept
example weighs `n / k`, so that the step is the mean over the kept ones and does not shrink as more is
dropped. Shapes are static throughout, as XLA needs them.

A rule may have three attributes that a model asks for:

* `epsilon`: the fraction that it drops, a number or a schedule of the step.
* `takes_labels`: True if it is called with a fourth argument, `labels`, the given classes, int32 `[batch]`.
* `most_kept(count)`: how many of `count` examples it keeps at most, or None if only the step knows. With it
  `recompute=True` runs under XLA.

A new rule is a new file here: a frozen dataclass, registered with `register_keras_serializable`, with
`get_config` and `from_config`, so that it is saved with a model. `ranking.prepare` cleans its scores. To make
it `prl_keras.X`, import it here and in `prl_keras/__init__.py`. A method that uses it is a row in
`methods.py`. A rule that is given as a score is recognised by its argument `is_ranked`.
"""

from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.schedules import linear_ramp
from prl_keras.rules.trim import Trim, kept_count

__all__ = ["ClipNorm", "KeepLowest", "Trim", "kept_count", "linear_ramp"]
