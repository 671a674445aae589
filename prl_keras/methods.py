"""The methods, each a row: score, rule, exchange, loss, optimizer. The paper's twelve come first.

A new method is a new row here, and at most one new function.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from prl_keras.epsilon.estimated import EstimatedEpsilon
from prl_keras.inputs import loss_kinds
from prl_keras.inputs.shapes import check_classification
from prl_keras.keras_gaps.optimizers import averaging, own_optimizer, whole_copy
from prl_keras.losses import Bootstrap
from prl_keras.models.co_teaching import CoTeachingModel
from prl_keras.models.consistency import Agreement, EarlyLearning
from prl_keras.models.robust_model import RobustModel
from prl_keras.rules import weight_by_loss
from prl_keras.rules.bare import Bare
from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.epsilon import check_epsilon, linear_ramp
from prl_keras.rules.inverse_score import InverseScore
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.mixture_posterior import MixturePosterior
from prl_keras.rules.sigua import Sigua
from prl_keras.rules.trim import Trim
from prl_keras.rules.weight_by_loss import WeightByLoss
from prl_keras.validate import check_integer, is_number

_BOTH = ("classification", "regression")
_CLASSES = ("classification",)
_MODEL_OPTIONS = ("recompute", "microbatch_size", "unit")
_COMPILE_OPTIONS = (
    "loss_weights",
    "weighted_metrics",
    "run_eagerly",
    "steps_per_execution",
    "jit_compile",
    "auto_scale_loss",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: The name in `METHODS`.
        title: Its name in the paper, or in its own.
        score: The name of the score, or None.
        rule: Function of `(epsilon, *, option=default, ...)` that returns the rule, or None. Its keyword-only
            arguments are options of `build`, as are those of `loss`, `optimizer` and `model`.
        exchange: A name in `models.exchanges.EXCHANGES` for two networks, None for one.
        loss: Function of `(loss, *, ...)` that returns the loss to train on, or None for the given one.
        optimizer: Function of `(optimizer, *, ...)` that returns the optimizer, or None for the given one.
        model: Function of `(*, ...)` that returns further arguments of the model as a dict, or None.
        tasks: "classification", "regression" or both.
    """

    name: str
    title: str
    score: str | None = None
    rule: Callable[..., Any] | None = None
    exchange: str | None = None
    loss: Callable[..., Any] | None = None
    optimizer: Callable[..., keras.optimizers.Optimizer] | None = None
    model: Callable[..., dict[str, Any]] | None = None
    tasks: tuple[str, ...] = _BOTH

    @property
    def drops_a_fraction(self) -> bool:
        """Whether the method uses epsilon."""
        return self.rule is not None and hasattr(self.rule(0.1), "epsilon")

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the method's own hyperparameters, for `build`."""
        return {
            name: parameter.default
            for part in (self.rule, self.loss, self.optimizer, self.model)
            if part is not None
            for name, parameter in inspect.signature(part).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }


def _trim(epsilon, *, min_keep_per_class=0):
    return Trim(epsilon, min_keep_per_class)


def _sigua(epsilon, *, gamma=0.01, share=0.3):
    return Sigua(epsilon, gamma, share)


def _rule(make_rule, **defaults):
    """The function of a row whose rule takes these options, and no epsilon."""

    def rule(epsilon, **options):
        return make_rule(**{**defaults, **options})

    kinds = inspect.Parameter
    rule.__signature__ = inspect.Signature([
        kinds("epsilon", kinds.POSITIONAL_ONLY),
        *(kinds(option, kinds.KEYWORD_ONLY, default=value) for option, value in defaults.items()),
    ])  # fmt: skip
    return rule


def _by_loss(name):
    """The function of a row's rule `WeightByLoss(name)`, with the parameters of that loss."""
    make_rule = functools.partial(WeightByLoss, name)
    return _rule(make_rule, warm_up_steps=0, **weight_by_loss.defaults(name))


def _huber_loss(loss, *, delta=1.0):
    if not loss_kinds.is_regression(loss):
        raise ValueError(f"method='huber' is for regression; it cannot replace the loss {loss!r}.")
    return keras.losses.Huber(delta=delta, reduction=loss_kinds.reduction_of(loss))


def _bootstrap_loss(loss, *, beta=0.8):
    check_classification(loss, "method='bootstrap'")
    from_logits = getattr(loss, "from_logits", False)
    return Bootstrap(beta=beta, from_logits=from_logits, reduction=loss_kinds.reduction_of(loss))


def _clipped_optimizer(optimizer, *, max_norm=1.0):
    if not isinstance(max_norm, numbers.Real) or not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm={max_norm!r} must be a positive finite number.")
    if hasattr(optimizer, "optimizers"):
        raise ValueError(
            f"method='normclip' clips the norm of the whole gradient; {type(optimizer).__name__} gives its "
            "optimizers a part each. Write a single optimizer."
        )
    optimizer = whole_copy(optimizer)
    clipping = getattr(optimizer, "inner_optimizer", optimizer)  # a LossScaleOptimizer unscales, then clips
    clipping.clipnorm = clipping.clipvalue = None
    clipping.global_clipnorm = float(max_norm)
    return optimizer


def _averaging_optimizer(optimizer, *, momentum=0.99):
    if not is_number(momentum) or not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r} must be a number in [0, 1), that of the averaged weights.")
    return averaging(optimizer, float(momentum))


def _elr(*, strength=3.0):
    """ELR with a mean teacher: see `EarlyLearning`. An optimizer with `use_ema=True` keeps its momentum."""
    return {"consistency": EarlyLearning(strength)}


def _jocor(*, strength=0.5):
    """JoCoR: see `Agreement`, and `exchange="joint"` in `CoTeachingModel`."""
    return {"consistency": Agreement(strength)}


def _co_teaching_plus(*, warm_up_steps=0):
    """Co-teaching+ (Yu et al. 2019): co-teaching for `warm_up_steps`, then among differing predictions."""
    return {"warm_up_steps": warm_up_steps}


METHODS: Mapping[str, Method] = types.MappingProxyType(
    {
        method.name: method
        for method in (
            Method("standard", "Standard"),
            Method("normclip", "Normclip", optimizer=_clipped_optimizer),
            Method("huber", "Huber", loss=_huber_loss, tasks=("regression",)),
            Method("bootstrap", "Bootstrap", loss=_bootstrap_loss, tasks=_CLASSES),
            Method("decouple", "Decouple", exchange="disagreement", tasks=_CLASSES),
            Method("min_sgd", "Min-sgd", "loss", _rule(KeepLowest, count=1)),
            Method("spl", "SPL", "loss", _trim),
            Method("ignormclip", "Ignormclip", "gradient", _rule(ClipNorm, max_norm=1.0)),
            Method("prl_g", "PRL(G)", "gradient", _trim),
            Method("prl_l", "PRL(L)", "loss_layer_gradient", _trim),
            Method("co_teaching", "Co-teaching", "loss", _trim, "swap"),
            Method("co_prl_l", "Co-PRL(L)", "loss_layer_gradient", _trim, "swap"),
            # Later, or not in the paper.
            Method("gce", "GCE", "loss", _by_loss("gce"), tasks=_CLASSES),
            Method("sce", "SCE", "loss", _by_loss("sce"), tasks=_CLASSES),
            Method("mae", "MAE", "loss", _by_loss("mae"), tasks=_CLASSES),
            Method("phuber", "PHuber", "loss", _by_loss("phuber"), tasks=_CLASSES),
            Method("clipped_ce", "Clipped CE", "loss", _by_loss("clipped_ce"), tasks=_CLASSES),
            Method("taylor", "Taylor CE", "loss", _by_loss("taylor"), tasks=_CLASSES),
            Method("term", "TERM", "loss", _by_loss("term"), tasks=_CLASSES),
            Method("sigua", "SIGUA", "loss", _sigua),
            Method("bare", "BARE", "loss", _rule(Bare, kappa=1.0), tasks=_CLASSES),
            Method("sever", "SEVER", "sever", _trim),
            Method("geomed", "Geometric median", "distance_to_median", _rule(InverseScore, smallest=0.01)),
            Method("jocor", "JoCoR", "loss", _trim, "joint", model=_jocor, tasks=_CLASSES),
            Method(
                "co_teaching_plus",
                "Co-teaching+",
                "loss",
                _trim,
                "swap_disagreement",
                model=_co_teaching_plus,
                tasks=_CLASSES,
            ),
            Method("elr", "ELR", optimizer=_averaging_optimizer, model=_elr, tasks=_CLASSES),
            Method("gmm", "GMM posterior", "loss", _rule(MixturePosterior, warm_up_steps=0), tasks=_CLASSES),
        )
    }
)
"""The rows of the table of methods by name, in the order of the table; read-only."""

#: The names of the paper's methods, in its order.
PAPER_METHODS = tuple(METHODS)[:12]

AUTO = "prl_l"  # what `build("auto", ...)` is, with epsilon="auto"


def build(
    method: str,
    make_network: Callable[[], keras.Model],
    *,
    epsilon: float | str | keras.optimizers.schedules.LearningRateSchedule | None = None,
    loss: Any,
    optimizer: Any,
    metrics: Any = (),
    ramp_steps: int = 0,
    **options: Any,
) -> keras.Model:
    """A compiled model that trains by `method`.

    Where nothing is known of the labels, write `build("auto", make_network, loss=..., optimizer=...)`: PRL(L)
    that estimates epsilon as it trains (`EstimatedEpsilon`). It needs neither epsilon nor clean labels
    (docs/which_method.md says why this one).

    Args:
        method: A name in `METHODS`, or "auto".
        make_network: Function without arguments that returns a fresh Keras model. For a pair it is called
            twice and must return different initial weights.
        epsilon: Fraction to drop, in `[0, 1)`, a schedule of the optimizer step, or "auto" for
            `EstimatedEpsilon(ramp_steps or None)`. Methods that drop no fraction check it but do not use it;
            for them, and for "auto", it may be left out.
        loss: The task's loss; "huber" and "bootstrap" replace it by their own.
        optimizer: A Keras optimizer or its name. The first call that gets it trains with it; further calls
            make their own copies of it, as it was before it trained.
        metrics: Keras metrics in any form that `compile` takes, or one metric's name.
        ramp_steps: If positive, epsilon rises linearly from 0 over this number of optimizer steps
            (`linear_ramp`). For epsilon "auto" it is the warm-up, by default that of `EstimatedEpsilon`.
            Methods that drop no fraction do not use it; some have an option `warm_up_steps`.
        **options: The method's own options (`METHODS[method].options`), `recompute`, `microbatch_size` and
            `unit` as in `RobustModel` (unused by methods without a score), and arguments of `compile` such
            as `jit_compile`.

    Returns:
        A `RobustModel`, or a `CoTeachingModel` if the method has an exchange. A method that changes the loss
        or the optimizer alone returns a plain `keras.Model`; in the scope of a `tf.distribute` strategy,
        where Keras's own `fit` may fail (`keras_gaps.replicas`), it returns a `RobustModel` with
        `score=None`.

    Raises:
        ValueError: for an unknown method or option, an invalid argument, a missing epsilon, or a loss that
            does not suit the method.
    """
    if method not in METHODS and method != "auto":
        raise ValueError(f"method={method!r} is not known; write auto, or one of {', '.join(METHODS)}.")
    if method == "auto":
        if epsilon not in (None, "auto"):
            raise ValueError(
                f"method='auto' estimates epsilon; leave epsilon={epsilon!r} out, or write method={AUTO!r}."
            )
        method, epsilon = AUTO, "auto"
    row = METHODS[method]
    if epsilon is None:
        if row.drops_a_fraction:
            raise ValueError(
                f"method={method!r} drops a fraction of the examples: write epsilon=..., such as 0.3, or "
                'epsilon="auto" if you do not know it.'
            )
        epsilon = 0.0
    known = (*row.options, *_MODEL_OPTIONS, *_COMPILE_OPTIONS)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"method={method!r} has no option {', '.join(unknown)}; it takes {', '.join(known)}."
        )
    if loss is None:
        raise ValueError("loss=None: every method needs the task's loss, such as 'mse'.")
    if optimizer is None:
        raise ValueError("optimizer=None: write a Keras optimizer or its name, such as 'adam'.")
    if inspect.isclass(optimizer):
        raise ValueError(f"optimizer={optimizer.__name__} is a class; write {optimizer.__name__}().")
    check_integer("ramp_steps", ramp_steps, 0)
    if isinstance(make_network, keras.Model) or not callable(make_network):
        raise ValueError(
            f"make_network={make_network!r} must be a function without arguments that gives a fresh Keras "
            "model each time, such as lambda: keras.Sequential([...])."
        )
    epsilon = _schedule(epsilon, ramp_steps)
    loss = keras.tree.map_structure(keras.losses.get, loss)
    if row.tasks == _CLASSES:
        keras.tree.map_structure(lambda part: check_classification(part, f"method={method!r}"), loss)
    if row.loss is not None:
        own = _chosen(row.loss, options)
        loss = keras.tree.map_structure(lambda part: None if part is None else row.loss(part, **own), loss)
    rule = None if row.rule is None else row.rule(epsilon, **_chosen(row.rule, options))

    model_options = {name: options[name] for name in _MODEL_OPTIONS if name in options}
    if row.model is not None:
        model_options |= row.model(**_chosen(row.model, options))
    if row.exchange is not None:
        model = CoTeachingModel(
            make_network(), make_network(), row.score, rule, row.exchange, **model_options
        )
    elif row.score is not None or row.model is not None or tf.distribute.has_strategy():
        model = RobustModel(make_network(), row.score, rule, **model_options)
    else:
        model = make_network()
    optimizer = own_optimizer(optimizer)
    if row.optimizer is not None:
        optimizer = row.optimizer(optimizer, **_chosen(row.optimizer, options))
    compile_options = {name: options[name] for name in _COMPILE_OPTIONS if name in options}
    if isinstance(metrics, (str, tuple)):
        metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    model.compile(optimizer, loss, metrics=metrics, **compile_options)
    return model


def _schedule(epsilon, ramp_steps):
    if isinstance(epsilon, str) and epsilon == "auto":
        return EstimatedEpsilon(ramp_steps or None)
    check_epsilon(epsilon)  # for every method
    if not ramp_steps:
        return epsilon
    if not isinstance(epsilon, numbers.Real):
        raise ValueError("epsilon is a schedule already; leave ramp_steps=0.")
    return linear_ramp(epsilon, ramp_steps)


def _chosen(part, options):
    """The options that this part of the method takes."""
    return {name: options[name] for name in inspect.signature(part).parameters if name in options}
