"""Which optimizer a model trains with: the given one, or a copy where another model has it already.

Keras copies optimizers by their config. The config lacks what `exclude_from_weight_decay` was told, and the
arguments of an own class without `get_config`; functions as learning rates cannot be restored from it.
"""

import copy
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

# Each optimizer that a model got from here, and a copy from before its training.
_in_use: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def own_optimizer(optimizer: Any) -> keras.optimizers.Optimizer:
    """The given optimizer; for another model than the first a copy of it, as it was before it trained.

    Args:
        optimizer: A Keras optimizer, its name or its config.

    Raises:
        ValueError: for an optimizer that is in use and cannot be copied.
    """
    given = keras.optimizers.get(optimizer)
    if given in _in_use:
        _check_names_no_weights(given)
        untrained = _in_use[given] if given.built else given
    else:
        untrained = None if given.built else given
    if getattr(given, "_distribution_strategy", None) is not tf.distribute.get_strategy():
        own = _from_config(given, "was made outside of this strategy's scope")
    elif untrained is None:
        own = _from_config(given, "has trained another model")
    else:
        own = whole_copy(given, untrained) if given in _in_use else given
    try:
        _in_use[own] = whole_copy(own)
    except ValueError:
        _in_use[own] = None  # an error only if it is given again
    return own


def whole_copy(
    optimizer: keras.optimizers.Optimizer, source: keras.optimizers.Optimizer | None = None
) -> keras.optimizers.Optimizer:
    """A copy with all attributes.

    Args:
        optimizer: Named in the error.
        source: The optimizer to copy, if another.

    Raises:
        ValueError: if an attribute cannot be copied.
    """
    try:
        return _copied(source or optimizer)
    except Exception as error:  # an attribute may be anything
        raise ValueError(_advice(optimizer, f"cannot be copied: {error}")) from error


def averaging(optimizer: keras.optimizers.Optimizer, momentum: float) -> keras.optimizers.Optimizer:
    """A copy of an optimizer that keeps moving averages of the weights (Keras's `use_ema`).

    If the optimizer keeps averages already, the copy keeps its momentum.

    Raises:
        ValueError: for a `MultiOptimizer`, or an optimizer that cannot be copied.
    """
    _check_is_single(optimizer)
    optimizer = whole_copy(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        inner.use_ema, inner.ema_momentum = True, momentum
    return optimizer


def weight_averages(optimizer: keras.optimizers.Optimizer, weights: Sequence[Any]) -> list[tf.Tensor]:
    """The moving averages that a built optimizer keeps of weights; the weights until its first step.

    Keras's averages are 0 until then. A weight that the optimizer does not average stands for itself.

    Args:
        optimizer: A Keras optimizer with `use_ema=True`, or a `LossScaleOptimizer` of one.

    Raises:
        ValueError: for an optimizer that keeps no averages.
    """
    _check_is_single(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        raise ValueError(
            f"optimizer={type(inner).__name__} keeps no averages of the weights, which the teacher needs. "
            f"Write keras.optimizers.{type(inner).__name__}(..., use_ema=True)."
        )
    known = zip(inner._trainable_variables, inner._model_variables_moving_average)
    averages = {id(variable): average for variable, average in known if average is not None}
    has_stepped = tf.convert_to_tensor(inner.iterations) > 0
    return [
        tf.where(has_stepped, averages[id(w)].value, w.value) if id(w) in averages else w.value
        for w in weights
    ]


def _check_is_single(optimizer):
    if any(hasattr(each, "optimizers") for each in _optimizers_in(optimizer)):
        raise ValueError(
            f"{type(optimizer).__name__} gives its optimizers a part of the weights each, and the averages "
            "of the weights need one optimizer. Write a single optimizer with use_ema=True."
        )


def _check_names_no_weights(optimizer: keras.optimizers.Optimizer) -> None:
    """Rejects the copy of an optimizer that excludes weights by themselves: another network has others."""
    if any(_excluded_weights(each) for each in _optimizers_in(optimizer)):
        fault = "excludes weights of one network from weight decay (var_list=..., not var_names=...)"
        raise ValueError(_advice(optimizer, fault))


def _copied(optimizer):
    """`copy.deepcopy` would save and load the optimizer, that is, copy its config."""
    new = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(optimizer): new}
    strategy = optimizer._distribution_strategy
    memo[id(strategy)] = strategy
    for inner in _optimizers_in(list(vars(optimizer).values())):
        memo[id(inner)] = _copied(inner)
    vars(new).update(copy.deepcopy(vars(optimizer), memo))
    return new


def _optimizers_in(value: Any) -> Iterator[Any]:
    """The optimizer, and those that a `LossScaleOptimizer` or `MultiOptimizer` holds."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield value
        value = [v for v in vars(value).values() if v is not value]
    if isinstance(value, Mapping):
        value = [*value.values(), getattr(value, "default_optimizer", None)]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _optimizers_in(part)


def _from_config(optimizer, why):
    try:
        config = optimizer.get_config()
        new = type(optimizer).from_config(config)
    except Exception as error:  # Keras raises many kinds
        raise ValueError(_advice(optimizer, f"{why}, and has no copy by its config: {error}")) from error
    parameters = inspect.signature(type(optimizer).__init__).parameters.values()
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    lost = sorted(named - {"self"} - set(config))
    if any(_excludes(each) for each in _optimizers_in(optimizer)):
        lost.append("what exclude_from_weight_decay was told")
    if lost:
        raise ValueError(_advice(optimizer, f"{why}, and its get_config() lacks {', '.join(lost)}"))
    return new


def _excludes(optimizer):
    return getattr(optimizer, "_exclude_from_weight_decay_pattern", None) or _excluded_weights(optimizer)


def _excluded_weights(optimizer):
    return getattr(optimizer, "_exclude_from_weight_decay", None)


def _advice(optimizer, fault):
    return (
        f"optimizer={type(optimizer).__name__} {fault}. Make a new optimizer for each call of build, in the "
        "scope of its strategy if it has one."
    )
