"""Constructor arguments of a model that may be assigned later, such as `model.rule = Trim(0.2)`."""

import typing

import keras

from prl_keras.epsilon.estimated import estimated_of

_MISSING = object()
_ANEW = "Make a new model of the same network, such as RobustModel(network, {}=...), and compile it."


class Setting:
    """An attribute that a model checks on assignment. It has effect from the next training step on.

    Without the check a compiled step would go on with the old value, and the config of the model would say
    the new one.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, model: typing.Any, owner: type | None = None) -> typing.Any:
        if model is None:
            return self
        try:
            return model.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, model: typing.Any, value: typing.Any) -> None:
        before = model.__dict__.get(self._name, _MISSING)
        model.__dict__[self._name] = value
        if before is _MISSING:
            return  # the constructor has checked it
        try:
            _check_change(self._name, before, value)
            model.settings_changed()
        except ValueError:
            model.__dict__[self._name] = before
            raise


def trace_again(model: keras.Model) -> None:
    """Makes the training step that Keras traced anew: a running `fit` takes it from its next step on."""
    model.__dict__.pop("_weights_graph", None)  # of `in_inference.graph_of_example_weights`
    if model.train_function is not None:
        model.make_train_function(force=True)


def _check_change(name, before, after):
    """Rejects a change that would add or remove variables of a model."""
    estimated = [estimated_of(rule) is not None for rule in (before, after)]
    if (name == "unit" and before != after) or (name == "score" and (before is None) != (after is None)):
        raise ValueError(f"{name}={before!r} cannot become {after!r}. {_ANEW.format(name)}")
    if name == "rule" and before is not after and any(estimated):
        raise ValueError(
            f"rule={before!r} cannot become {after!r}: an EstimatedEpsilon is one of the model's weights. "
            f"{_ANEW.format(name)}"
        )
