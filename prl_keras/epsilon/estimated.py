"""epsilon="auto": the fraction to drop, estimated during training."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from prl_keras.validate import check_fraction, check_integer

WARMUP_SHARE = 0.2  # of the steps of a training
#: The warm-up is at most so many epochs (the paper's ramp) or steps, whichever is more. In a longer one the
#: network memorizes.
WARMUP_EPOCHS, WARMUP_STEPS = 10, 100
SUREST = 0.1  # the share of examples whose doubt is looked at
#: Epsilon is at most so many times that doubt, less `OF_CLEAN`. Early in training the doubt was 0.4 to 0.9 of
#: the fraction of wrong labels, for 20% to 50% on three data sets, and 0.01 on their clean labels.
DOUBTS, OF_CLEAN = 4.0, 0.05
FALLS = 0.8  # a doubt below so much of that of the epoch before still falls


@keras.saving.register_keras_serializable(package="prl_keras")
class EstimatedEpsilon(keras.optimizers.schedules.LearningRateSchedule):
    """An epsilon that need not be known: after each epoch it is the fraction that training finds wrong.

    That is the high end of the interval that `fit` estimates (`NoiseWatch`, 90%), but at most `most`, and for
    classes at most what the surest predictions allow. It is the high end because dropping too many is cheap
    and dropping too few is not (the paper's table 3): a dropped label cannot be memorised, so it stays
    visible as wrong.

    The first half of the warm-up drops nothing. In its second half the value rises from 0. The warm-up should
    last as long as the networks take to learn their classes. A class that is not yet learnt looks wrong, and
    dropped examples are never learnt; `Trim(EstimatedEpsilon(), min_keep_per_class=1)` prevents that.

    **What the surest predictions allow.** Data that are hard to learn look like wrong labels: by the interval
    alone, nearly half of them might be wrong. But a network that has not begun to memorize is nowhere surer
    than the labels are right: where it is surest, it predicts the given class with a probability of about one
    minus the share of wrong labels (the anchor points of Liu & Tao 2016, "Classification with noisy labels by
    importance reweighting"). So after each epoch in which nothing was dropped, the doubt, one minus the
    highest probability, is looked at that the surest tenth of the examples stays below. Epsilon is at most
    `DOUBTS` times this doubt, less `OF_CLEAN`. While the doubt still falls by a fifth in an epoch, the
    network learns, and the first half of the warm-up is prolonged by an epoch; it ends with an epoch. On
    clean labels nothing is dropped, if a network learns a tenth of them well.

    Two networks distinguish noise from their own errors by where they disagree. `train_on_batch` has no
    epochs, so there epsilon is the ramp up to `most`, and `warmup_steps` must be given.

    The state is one of the model's weights: it is saved, restored and resumed with them. A model copies a
    schedule that it is given.

    Args:
        warmup_steps: Optimizer steps of the warm-up, at least 1; None for a fifth of the first `fit`, but at
            most ten epochs (Han et al. 2018) or 100 steps, whichever is more: a network memorizes in a longer
            one. If that `fit` is short and others follow, give the number.
        most: The largest value of epsilon, in (0, 1).

    Attributes:
        state: `keras.Variable`, float32 `[5]`: the fraction that the last epoch found, `most` before the
            first; the most that the surest predictions allow; the steps of the warm-up, 0 if not known yet;
            the step up to which nothing is dropped; the last doubt.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, warmup_steps: int | None = None, most: float = 0.5) -> None:
        if warmup_steps is not None:
            warmup_steps = check_integer("warmup_steps", warmup_steps)
        check_fraction("most", most)
        if not most:
            raise ValueError("most=0 drops nothing, so nothing can be found; write epsilon=0.")
        self.warmup_steps, self.most = warmup_steps, float(most)
        start = np.array([self.most, self.most, warmup_steps or 0, (warmup_steps or 0) // 2, 1.0], "float32")
        self.state = keras.Variable(start, trainable=False, dtype="float32", name="epsilon")

    def __call__(self, step: Any) -> Any:
        """The fraction to drop at an optimizer step, a float32 scalar."""
        found, allowed, warmup, plain, _ = ops.unstack(ops.convert_to_tensor(self.state))
        rises = ops.maximum(ops.ceil(warmup / 2), 1.0)
        risen = self.most * ops.clip((ops.cast(step, "float32") - plain) / rises, 0.0, 1.0)
        return ops.where(warmup > 0, ops.minimum(risen, ops.minimum(found, allowed)), 0.0)

    def start(self, epochs: int, epoch_steps: int, step: int = 0) -> None:
        """Prepares for a training whose length is known: an unknown warm-up is a fifth of it, or ten epochs.

        The first epoch drops nothing, however short the warm-up is.

        Args:
            epochs: The number of epochs of the training.
            epoch_steps: The optimizer steps of an epoch.
            step: The optimizer step before the training.
        """
        found, allowed, warmup, plain, doubt = self._numbers()
        if not warmup:
            most = max(WARMUP_EPOCHS * epoch_steps, WARMUP_STEPS)
            warmup = max(2, min(round(epochs * epoch_steps * WARMUP_SHARE), most))
            plain = warmup // 2
        if step == 0:
            plain = max(plain, epoch_steps)
        self.state.assign([found, allowed, warmup, plain, doubt])

    def update(self, high: float, doubt: float | None = None, step: int = 0, epoch_steps: int = 0) -> None:
        """Sets the state after an epoch.

        Args:
            high: At most this fraction is wrong.
            doubt: The doubt that the surest tenth of the epoch's examples stays below; None for targets that
                are not classes.
            step: The optimizer step after the epoch.
            epoch_steps: The optimizer steps of an epoch.
        """
        _, allowed, warmup, plain, before = self._numbers()
        if doubt is not None and (not warmup or step <= plain):  # nothing was dropped
            allowed = min(max(DOUBTS * doubt - OF_CLEAN, 0.0), self.most)
            if plain > step or doubt < FALLS * before:  # to the end of an epoch, one more if it still falls
                epochs = math.ceil(max(plain - step, 1) / max(epoch_steps, 1))
                plain = max(plain, step + epochs * epoch_steps)
            before = doubt
        self.state.assign([min(high, self.most), allowed, warmup, plain, before])

    def go_on_from(self, found: float) -> None:
        """Sets the state of a model saved with its value alone, which rose from the first step on."""
        self.state.assign([found, self.most, 2 * (self.warmup_steps or 0), 0, 1])

    def __repr__(self) -> str:
        return f"EstimatedEpsilon(warmup_steps={self.warmup_steps}, most={self.most})"

    def _numbers(self):
        return keras.ops.convert_to_numpy(self.state).tolist()

    def get_config(self) -> dict[str, Any]:
        return {"warmup_steps": self.warmup_steps, "most": self.most}


def estimated_of(rule: Any) -> EstimatedEpsilon | None:
    """The `EstimatedEpsilon` that a rule has, or None."""
    epsilon = getattr(rule, "epsilon", None)
    return epsilon if isinstance(epsilon, EstimatedEpsilon) else None


def check_estimated(rule: Any, is_estimated: bool) -> None:
    """Rejects an `EstimatedEpsilon` if training estimates nothing (ValueError)."""
    if not is_estimated and estimated_of(rule) is not None:
        raise ValueError(
            "epsilon='auto' needs a model of one output, with one class label for each example or one of "
            "Keras's losses for real targets: of others fit estimates no epsilon. Write a number."
        )


def own_epsilon(rule: Any) -> Any:
    """The rule, with a copy of its `EstimatedEpsilon` if it has one."""
    epsilon = estimated_of(rule)
    if epsilon is None:
        return rule
    return dataclasses.replace(rule, epsilon=EstimatedEpsilon(**epsilon.get_config()))
