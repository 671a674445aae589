"""epsilon="auto": the fraction to drop, found while training."""

import dataclasses

import keras
from keras import ops

from prl_keras.validate import check_count, check_fraction


@keras.saving.register_keras_serializable(package="prl_keras")
class EstimatedEpsilon(keras.optimizers.schedules.LearningRateSchedule):
    """An epsilon that nobody need know: after each epoch it is what training itself finds wrong.

    That is the high end of the interval that `fit` estimates (`NoiseWatch`, 90%), and never above a ramp,
    from 0 to `most` over the warm-up. The high end, because too much is cheap and too little is not (the
    paper's table 3): what is dropped cannot be learnt by heart, and so hide.

    The warm-up should be as long as the networks take to learn their classes. A class that they have not yet
    learnt looks wrong, and what is dropped is never learnt: `Trim(EstimatedEpsilon(steps),
    min_keep_per_class=1)` keeps that from happening. Two networks tell noise from their own errors by where
    they disagree. A single one, or data that nobody learns well, keep it too high: the interval then is wide,
    and its end `most`. `train_on_batch` has no epochs, so there it is the ramp.

    Its value is one of the model's weights: saved, restored and resumed with them. A model makes its own
    copy of a schedule that it is given.

    Args:
        warmup_steps: Optimizer steps of the warm-up, at least 1.
        most: The highest that it can be, in (0, 1).

    Attributes:
        value: `keras.Variable`, a float32 scalar: what the last epoch found, `most` before the first.
    """

    def __init__(self, warmup_steps, most=0.5):
        check_count("warmup_steps", warmup_steps)
        check_fraction("most", most)
        if not most:
            raise ValueError("most=0 drops nothing, so nothing can be found; write epsilon=0.")
        self.warmup_steps, self.most = int(warmup_steps), float(most)
        self.value = keras.Variable(self.most, trainable=False, dtype="float32", name="epsilon")

    def __call__(self, step):
        risen = self.most * ops.minimum(ops.cast(step, "float32") / self.warmup_steps, 1.0)
        return ops.minimum(risen, ops.convert_to_tensor(self.value))

    def update(self, high):
        """Takes what an epoch found: at most so much is wrong."""
        self.value.assign(min(high, self.most))

    def get_config(self):
        return {"warmup_steps": self.warmup_steps, "most": self.most}


def check_estimated(rule, is_estimated):
    """Refuses an `EstimatedEpsilon` where training estimates nothing."""
    if not is_estimated and isinstance(getattr(rule, "epsilon", None), EstimatedEpsilon):
        raise ValueError(
            "epsilon='auto' needs a model of one output, with one class label for each example or one of "
            "Keras's losses for real targets: of others fit estimates no epsilon. Write a number."
        )


def own_epsilon(rule):
    """The rule, but with a copy of its `EstimatedEpsilon`, if it has one."""
    if isinstance(getattr(rule, "epsilon", None), EstimatedEpsilon):
        return dataclasses.replace(rule, epsilon=EstimatedEpsilon(**rule.epsilon.get_config()))
    return rule
