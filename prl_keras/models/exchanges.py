"""Exchanges: which network's selection each network of a pair trains on.

An exchange is called as `exchange(weigh, examples)`. `weigh(examples)` applies the rule to the `Examples` of
the global batch and returns a list of one `Weighed` per network. The exchange returns a list of the same
form: network `i` trains on entry `i`.

To add an exchange, write a function here and a row in `EXCHANGES`.
"""

import typing
from collections.abc import Callable

import tensorflow as tf

from prl_keras.inputs import nonfinite


class Exchange(typing.NamedTuple):
    """An exchange function, and whether it reads where the predicted classes differ."""

    function: Callable[..., list[typing.Any]]
    compares_predictions: bool = False


def swap(weigh: Callable[[typing.Any], list[typing.Any]], examples: typing.Any) -> list[typing.Any]:
    """Each network trains on the examples that the other network's scores keep (the paper's algorithm 4)."""
    return weigh(examples)[::-1]


def disagreement(weigh: Callable[[typing.Any], list[typing.Any]], examples: typing.Any) -> list[typing.Any]:
    """Each network trains on the examples whose predicted class differs between the two.

    Each network's own scores select among them; the other examples are treated as padding. The mean is still
    over all examples: a rule's weight `m / k` over the `m` that differ becomes `n / k` over all `n` (Malach
    and Shalev-Shwartz 2017).
    """
    differing = tf.logical_and(examples.is_ranked, examples.differs)
    ratio = tf.math.divide_no_nan(nonfinite.count(examples.is_ranked), nonfinite.count(differing))
    weighed = weigh(examples._replace(is_ranked=differing))
    return [each._replace(weights=ratio * each.weights) for each in weighed]


def swap_disagreement(
    weigh: Callable[[typing.Any], list[typing.Any]], examples: typing.Any
) -> list[typing.Any]:
    """`swap` among the examples of `disagreement`: the mean is over the kept of those (Yu et al. 2019)."""
    return disagreement(weigh, examples)[::-1]


def joint(weigh: Callable[[typing.Any], list[typing.Any]], examples: typing.Any) -> list[typing.Any]:
    """Both networks train on the examples that the mean of their scores keeps (Wei et al. 2020)."""
    scores, losses = _mean(examples.scores), _mean(examples.losses)
    return [weigh(examples._replace(scores=scores, losses=losses))[0]] * 2


def _mean(columns):
    """A list of the mean column; an empty list for an empty one."""
    return [tf.add_n([column / len(columns) for column in columns])] if columns else []


EXCHANGES = {
    "swap": Exchange(swap),
    "disagreement": Exchange(disagreement, compares_predictions=True),
    "swap_disagreement": Exchange(swap_disagreement, compares_predictions=True),
    "joint": Exchange(joint),
}
