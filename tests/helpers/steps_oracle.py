"""The brute-force oracle of losses with several values for an example: one for each step or pixel.

A Python loop over the examples and their steps, one gradient for each, the rest NumPy in float64. As
`oracle.py` it shares no code with the library.

The loss of step t of example i is l_it, with gradient g_it, and s_it is the user's weight for it (1 where
none is given). A step is visible unless a mask hides it or its label is the class that the loss ignores; it
counts if it is visible and s_it != 0. With N the number of visible steps in the batch, the gradient is

    (1 / N) * sum_i w_i * sum_t s_it * g_it              Keras's mean, over the steps that count

Scores see the n_i steps of an example that count, and nothing of how large the s_it are. An example's loss
is the mean over these steps. Ignormclip sees the norm of the gradient of this mean; the methods that rank
see sqrt(n_i) times that. An example of which nothing counts is padding. With unit="element" each step is
ranked as an example of one step is, and where the loss is a mean over the entries of a step, each entry is.
"""

import collections

import numpy as np
import oracle
import tensorflow as tf

Step = collections.namedtuple("Step", "gradients weights")
Step.__doc__ = """One step: `gradients[j]` has one array per trainable weight of network j; `weights[j]`,
float64, the rule's weight of each example for network j, [batch], or of each element, [batch, elements]."""

Run = collections.namedtuple("Run", "outputs losses gradients")
Run.__doc__ = """Step by step: `outputs[i][t]` [q], `losses[i][t]`, and `gradients[i][t]`, a list of arrays;
both are None of a step that does not count."""

ENTRIES = ("sigmoid_cross_entropy", "mse", "mae", "huber")  # means over the entries of a step


def step(
    method,
    networks,
    x,
    y,
    sample_weight=None,
    *,
    loss,
    epsilon=0.0,
    max_norm=None,
    mask=None,
    ignore_class=None,
    unit="example",
):
    """The gradients that one step of `method` must apply, as a `Step`.

    Args:
      method: one of the twelve names.
      networks: list of one network, or of two for a pair. Their outputs, [n, ..., q], are the logits or the
        predictions.
      x: inputs [n, ...].
      y: labels, [n, ...] for the sparse loss, else [n, ..., q].
      sample_weight: [n], [n, steps, ...] or None.
      loss: name of the loss, see `oracle.example_loss`.
      epsilon, max_norm: as in `oracle.step`.
      mask: bool [n, steps], which steps no layer hides; None for all.
      ignore_class: as in the Keras loss, or None.
      unit: "example" or "element".
    """
    by_entry = unit == "element" and loss in ENTRIES
    shape = networks[0](x).shape
    q = 1 if by_entry else shape[-1]
    rows = int(np.prod(shape[1:])) // q
    n = len(x)
    labels = np.reshape(y, [n, rows] if loss == "sparse_softmax_cross_entropy" else [n, rows, q])
    visible = np.ones([n, rows], bool) if mask is None else for_each_row(mask, n, rows) != 0
    if ignore_class is not None:
        visible = visible & (labels != ignore_class)
    s = np.ones([n, rows]) if sample_weight is None else for_each_row(sample_weight, n, rows)
    counts = visible & (s != 0)

    runs = [run_steps(method, network, x, labels, counts, q, loss) for network in networks]
    weights = rule_weights(method, runs, labels, counts, loss, epsilon, max_norm, unit)
    gradients = []
    for network, run, w in zip(networks, runs, weights, strict=True):
        total = [np.zeros(weight.shape) for weight in network.trainable_weights]
        for i in range(n):
            for t in range(rows):
                if counts[i, t]:
                    w_it = w[i, t] if unit == "element" else w[i]
                    for sums, g in zip(total, run.gradients[i][t], strict=True):
                        sums += w_it * s[i, t] * g / visible.sum()
        gradients.append(total)
    if method == "normclip":
        scale = oracle.clip_factor(oracle.global_norm(gradients[0]), max_norm)
        gradients = [[scale * g for g in gradients[0]]]
    return Step(gradients, weights)


def for_each_row(given, n, rows):
    """A mask or weights [n, ...] for each row of an example: float64 [n, rows]."""
    given = np.asarray(given, "float64").reshape([n, -1])
    return np.repeat(given, rows // given.shape[1], axis=1)


def run_steps(method, network, x, labels, counts, q, loss):
    """Runs the network on each example alone: the output, loss and gradient of each of its steps, a `Run`."""
    variables = [weight.value for weight in network.trainable_variables]
    run = Run([], [], [])
    for i in range(len(x)):
        with tf.GradientTape(persistent=True) as tape:
            z = tf.reshape(network(x[i : i + 1], training=True), [-1, q])
            outputs = [z[t] for t in range(len(z))]
            losses = [
                oracle.training_loss(method, loss, outputs[t], labels[i, t]) if counts[i, t] else None
                for t in range(len(z))
            ]
        run.outputs.append([output.numpy() for output in outputs])
        run.losses.append([None if value is None else float(value) for value in losses])
        run.gradients.append([None if value is None else arrays(tape, value, variables) for value in losses])
    return run


def arrays(tape, value, variables):
    gradient = tape.gradient(value, variables, unconnected_gradients="zero")
    return [tf.convert_to_tensor(g).numpy().astype("float64") for g in gradient]


def scores_of(method, run, labels, counts, loss, unit):
    """How suspect each example or element is: float32 [n] or [n, rows], 0 where nothing counts."""
    n, rows = counts.shape
    if unit == "element":
        scores = np.zeros([n, rows], "float32")
        for i, t in np.argwhere(counts):
            scores[i, t] = score_of_steps(method, run, labels, loss, i, [t])
        return scores
    scores = np.zeros(n, "float32")
    for i in range(n):
        if counts[i].any():
            scores[i] = score_of_steps(method, run, labels, loss, i, np.flatnonzero(counts[i]))
    return scores


def score_of_steps(method, run, labels, loss, i, steps):
    """How suspect the given steps of example i are together."""
    n = len(steps)
    factor = 1.0 if method == "ignormclip" else np.sqrt(n)
    score = oracle.SCORES[method]
    if score == "loss":
        return sum(run.losses[i][t] for t in steps) / n
    if score == "loss_layer_gradient":
        alphas = [oracle.loss_layer_gradient(loss, run.outputs[i][t], labels[i, t]) / n for t in steps]
        return factor * oracle.global_norm(alphas)
    gradients = [run.gradients[i][t] for t in steps]
    mean = [sum(parts) / n for parts in zip(*gradients, strict=True)]
    return factor * oracle.global_norm(mean)


def rule_weights(method, runs, labels, counts, loss, epsilon, max_norm, unit):
    """The rule's weight of each example [n], or of each element [n, rows], for each network: a list."""
    ranked = counts if unit == "element" else counts.any(axis=1)
    if method in ("standard", "huber", "normclip", "bootstrap"):
        return [np.ones(ranked.shape)]
    if method == "decouple":  # where the two predict different classes, in a step that counts
        differs = counts & np.any(predicted(runs[0], loss) != predicted(runs[1], loss), axis=-1)
        differs = differs if unit == "element" else differs.any(axis=1)
        return [keep(np.flatnonzero(differs), ranked)] * 2
    scores = [scores_of(method, run, labels, counts, loss, unit) for run in runs]
    if method == "ignormclip":
        return [np.array([oracle.clip_factor(score, max_norm) for score in scores[0]])]
    m = ranked.sum()
    k = 1 if method == "min_sgd" else max(1, int(np.floor((1 - epsilon) * m + 1e-6)))
    weights = [keep(oracle.lowest(score.ravel(), ranked.ravel(), k), ranked) for score in scores]
    return weights[::-1]  # of a pair each learns from what the other one selected


def keep(kept, ranked):
    """`oracle.keep` in the shape of `ranked`; `kept` are places in the flat array."""
    return oracle.keep(kept, ranked.ravel()).reshape(ranked.shape)


def predicted(run, loss):
    """The label that each step's logits predict: [n, rows, ...]."""
    labels = np.array([[oracle.predicted_label(loss, z) for z in outputs] for outputs in run.outputs])
    return labels.reshape([*labels.shape[:2], -1])
