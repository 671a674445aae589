"""Exchanges: which network's selection each network of a pair trains on.

An exchange is called as `exchange(weigh, examples)`. `weigh(examples)` is the rule: it gives a list of one
`Weighed` per network, from `Examples` of the global batch. The exchange gives such a list again: entry `i` is
what network `i` trains on.

A new exchange is a function here and a row in `EXCHANGES`.
"""

import typing

import tensorflow as tf

from prl_keras.inputs import nonfinite


class Exchange(typing.NamedTuple):
    """A function as above, and whether it needs to know where the predicted classes differ."""

    function: typing.Callable
    compares_predictions: bool = False


def swap(weigh, examples):
    """Each network trains on what the other one's scores keep (the paper's algorithm 4)."""
    return weigh(examples)[::-1]


def disagreement(weigh, examples):
    """Each network trains on the examples whose predicted class differs between the two.

    Of those its own scores choose; the others are as padding. The mean is still over all: a rule's `m / k`
    over the `m` that differ becomes `n / k` over all `n` (Malach and Shalev-Shwartz 2017).
    """
    differing = tf.logical_and(examples.is_ranked, examples.differs)
    ratio = tf.math.divide_no_nan(nonfinite.count(examples.is_ranked), nonfinite.count(differing))
    weighed = weigh(examples._replace(is_ranked=differing))
    return [each._replace(weights=ratio * each.weights) for each in weighed]


EXCHANGES = {"swap": Exchange(swap), "disagreement": Exchange(disagreement, compares_predictions=True)}
