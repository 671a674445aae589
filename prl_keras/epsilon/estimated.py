"""epsilon="auto": the fraction to drop, estimated during training."""

import dataclasses
from typing import Any

import keras
from keras import ops

from prl_keras.validate import check_fraction, check_integer


@keras.saving.register_keras_serializable(package="prl_keras")
class EstimatedEpsilon(keras.optimizers.schedules.LearningRateSchedule):
    """An epsilon that need not be known: after each epoch it is the fraction that training finds wrong.

    That is the high end of the interval that `fit` estimates (`NoiseWatch`, 90%), but at most the ramp, which
    rises from 0 to `most` over the warm-up. It is the high end because dropping too many is cheap and
    dropping too few is not (the paper's table 3): a dropped label cannot be memorised, so it stays visible as
    wrong.

    The warm-up should last as long as the networks take to learn their classes. A class that is not yet
    learnt looks wrong, and dropped examples are never learnt; `Trim(EstimatedEpsilon(steps),
    min_keep_per_class=1)` prevents that. Two networks distinguish noise from their own errors by where they
    disagree. With a single network, or data that are hard to learn, the interval is wide, its high end is
    `most` and epsilon is too high. `train_on_batch` has no epochs, so there epsilon is the ramp.

    The value is one of the model's weights: it is saved, restored and resumed with them. A model copies a
    schedule that it is given.

    Args:
        warmup_steps: Optimizer steps of the warm-up, at least 1.
        most: The largest value of epsilon, in (0, 1).

    Attributes:
        value: `keras.Variable`, a float32 scalar: what the last epoch found; `most` before the first.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, warmup_steps: int, most: float = 0.5) -> None:
        check_integer("warmup_steps", warmup_steps)
        check_fraction("most", most)
        if not most:
            raise ValueError("most=0 drops nothing, so nothing can be found; write epsilon=0.")
        self.warmup_steps, self.most = int(warmup_steps), float(most)
        self.value = keras.Variable(self.most, trainable=False, dtype="float32", name="epsilon")

    def __call__(self, step: Any) -> Any:
        """The fraction to drop at an optimizer step, a float32 scalar."""
        risen = self.most * ops.minimum(ops.cast(step, "float32") / self.warmup_steps, 1.0)
        return ops.minimum(risen, ops.convert_to_tensor(self.value))

    def update(self, high: float) -> None:
        """Sets the value after an epoch: at most the fraction `high` is wrong."""
        self.value.assign(min(high, self.most))

    def get_config(self) -> dict[str, Any]:
        return {"warmup_steps": self.warmup_steps, "most": self.most}


def check_estimated(rule: Any, is_estimated: bool) -> None:
    """Rejects an `EstimatedEpsilon` if training estimates nothing (ValueError)."""
    if not is_estimated and isinstance(getattr(rule, "epsilon", None), EstimatedEpsilon):
        raise ValueError(
            "epsilon='auto' needs a model of one output, with one class label for each example or one of "
            "Keras's losses for real targets: of others fit estimates no epsilon. Write a number."
        )


def own_epsilon(rule: Any) -> Any:
    """The rule, with a copy of its `EstimatedEpsilon` if it has one."""
    if isinstance(getattr(rule, "epsilon", None), EstimatedEpsilon):
        return dataclasses.replace(rule, epsilon=EstimatedEpsilon(**rule.epsilon.get_config()))
    return rule
