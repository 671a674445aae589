"""The brute-force oracle: what one training step of every method must be.

A Python loop over the examples of the batch, one gradient tape each, the rest NumPy in float64.
Slow and obvious on purpose, and it shares no code with the library, whose fast path is tested
against it.

With n examples in the batch, g_i the gradient of the loss of example i, s_i its sample weight
(1 where none is given) and w_i the weight that the method's rule gives it, the step's gradient is

    (1 / n) * sum_i w_i * s_i * g_i                          Keras's mean over the whole batch

Only the m examples with s_i != 0 are ranked and counted; the others are padding. How large the
s_i are never reaches the scores. Of equal scores the earlier example ranks lower; where the gradient of the
loss does not grow with the error (mae), and a gradient is the score, the one of the lower loss does.
"""

import collections

import numpy as np
import tensorflow as tf

Step = collections.namedtuple("Step", "gradients weights")
Step.__doc__ = """One step: `gradients[j]` has one array per trainable weight of network j, what the
optimizer applies; `weights[j]`, float64 [n], is the rule's weight of each example for network j,
before `sample_weight`."""

SCORES = {
    "min_sgd": "loss",  # Shah et al. (2020)
    "spl": "loss",  # Kumar et al. (2010)
    "prl_l": "loss_layer_gradient",  # Algorithm 3
    "prl_g": "gradient",  # Algorithms 1 and 2
    "ignormclip": "gradient",
    "co_teaching": "loss",  # Han et al. (2018)
    "co_prl_l": "loss_layer_gradient",  # Algorithm 4
    "co_teaching_plus": "loss",  # Yu et al. (2019)
}


def step(method, networks, x, y, sample_weight=None, *, loss, epsilon=0.0, max_norm=None):
    """The gradients that one step of `method` must apply, as a `Step`.

    Args:
      method: one of the twelve names, or `co_teaching_plus`.
      networks: list of one network, or of two for a pair. Their outputs, [n, q], are the logits
        (classification) or the predictions (regression).
      x: inputs [n, ...].
      y: labels, [n] for the sparse loss, else [n, q].
      sample_weight: [n] or None; 0 marks padding.
      loss: name of the loss, see `example_loss`; `huber` replaces it, `bootstrap` mixes it.
      epsilon: fraction to drop, for the trimming methods.
      max_norm: for `normclip` and `ignormclip`.
    """
    n = len(x)
    s = np.ones(n) if sample_weight is None else np.asarray(sample_weight, "float64")
    runs = [run_examples(method, network, x, y, loss) for network in networks]
    weights = rule_weights(method, runs, y, s != 0, loss, epsilon, max_norm)
    gradients = []
    for run, w in zip(runs, weights, strict=True):
        mean = [np.zeros(g.shape) for g in run.gradients[0]]
        for i in range(n):
            for total, g in zip(mean, run.gradients[i], strict=True):
                total += w[i] * s[i] * g / n
        gradients.append(mean)
    if method == "normclip":
        scale = clip_factor(global_norm(gradients[0]), max_norm)
        gradients = [[scale * g for g in gradients[0]]]
    return Step(gradients, weights)


Run = collections.namedtuple("Run", "outputs losses gradients")
Run.__doc__ = "Example by example: outputs [n, q], losses [n], gradients: n lists of arrays."


def run_examples(method, network, x, y, loss):
    """Runs the network on each example alone: its output, its loss and the gradient of its loss."""
    variables = [v.value for v in network.trainable_variables]
    outputs, losses, gradients = [], [], []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            z = network(x[i : i + 1], training=True)[0]
            value = training_loss(method, loss, z, y[i])
        gradient = tape.gradient(value, variables, unconnected_gradients="zero")
        outputs.append(z.numpy())
        losses.append(value.numpy())
        gradients.append([g.numpy().astype("float64") for g in gradient])
    return Run(np.array(outputs), np.array(losses), gradients)


def training_loss(method, loss, z, y):
    """The loss that `method` trains on, for one example: scalar tensor.

    huber: Huber (1992). bootstrap: the hard targets of Reed et al. (2014) with beta = 0.8; the
    model's own prediction is a constant, no gradient flows through it.
    """
    if method == "huber":
        return example_loss("huber", z, y)
    if method == "bootstrap":
        own = predicted_label(loss, z.numpy())
        return 0.8 * example_loss(loss, z, y) + 0.2 * example_loss(loss, z, own)
    return example_loss(loss, z, y)


def example_loss(loss, z, y):
    """Loss of one example: scalar tensor, from its logits or predictions z [q] and its label y."""
    if loss == "sparse_softmax_cross_entropy":  # y: a class number
        return -tf.nn.log_softmax(z)[int(np.squeeze(y))]
    y = tf.constant(np.reshape(y, z.shape), z.dtype)
    if loss == "softmax_cross_entropy":  # y: one-hot [q]
        return tf.reduce_sum(-y * tf.nn.log_softmax(z))
    if loss == "sigmoid_cross_entropy":  # -y log sigmoid(z) - (1 - y) log sigmoid(-z)
        return tf.reduce_mean(tf.math.softplus(-z) + (1.0 - y) * z)
    if loss == "mse":
        return tf.reduce_mean((z - y) ** 2)
    if loss == "mae":
        return tf.reduce_mean(tf.abs(z - y))
    if loss == "huber":  # delta = 1
        r = tf.abs(z - y)
        return tf.reduce_mean(tf.where(r <= 1.0, 0.5 * r**2, r - 0.5))
    raise ValueError(f"The oracle has no loss {loss!r}.")


def loss_layer_gradient(loss, z, y):
    """d loss / d z of one example, [q], in closed form; for cross-entropy: the paper, Section 4."""
    z = np.asarray(z, "float64")
    q = len(z)
    if loss == "sparse_softmax_cross_entropy":
        return softmax(z) - np.eye(q)[int(np.squeeze(y))]
    y = np.reshape(y, [q])
    if loss == "softmax_cross_entropy":
        return softmax(z) - y
    if loss == "sigmoid_cross_entropy":
        return (1 / (1 + np.exp(-z)) - y) / q
    if loss == "mse":
        return 2 * (z - y) / q
    if loss == "mae":
        return np.sign(z - y) / q
    if loss == "huber":
        return np.clip(z - y, -1, 1) / q
    raise ValueError(f"The oracle has no loss {loss!r}.")


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def predicted_label(loss, z):
    """The label that logits z [q] predict, in the form of the labels of `loss`."""
    if loss == "sparse_softmax_cross_entropy":
        return np.argmax(z)
    if loss == "softmax_cross_entropy":
        return np.eye(len(z))[np.argmax(z)]
    if loss == "sigmoid_cross_entropy":
        return (z > 0).astype("float64")
    raise ValueError(f"{loss!r} predicts no class.")


def scores_of(method, run, y, loss):
    """How suspect each example is: float32 [n], higher = more suspect."""
    if SCORES[method] == "loss":
        scores = run.losses
    elif SCORES[method] == "loss_layer_gradient":
        alphas = [loss_layer_gradient(loss, run.outputs[i], y[i]) for i in range(len(y))]
        scores = [np.linalg.norm(alpha) for alpha in alphas]
    else:
        scores = [global_norm(g) for g in run.gradients]
    return np.array(scores, "float32")


def rule_weights(method, runs, y, counted, loss, epsilon, max_norm):
    """The rule's weight of each example for each network: a list of float64 [n].

    `counted`, bool [n], marks the m examples that are not padding.
    """
    if method in ("standard", "huber", "normclip", "bootstrap"):
        return [np.ones(len(counted))]
    among = counted
    if method in ("decouple", "co_teaching_plus"):
        a, b = [[predicted_label(loss, z) for z in run.outputs] for run in runs]
        among = counted & np.array([np.any(p != q) for p, q in zip(a, b, strict=True)])
    if method == "decouple":  # Malach & Shalev-Shwartz (2017): update where the two disagree
        weights = keep(np.flatnonzero(among), counted)
        return [weights, weights]
    scores = [scores_of(method, run, y, loss) for run in runs]
    if method == "ignormclip":
        return [np.array([clip_factor(score, max_norm) for score in scores[0]])]
    if method == "min_sgd":
        return [keep(lowest(scores[0], counted, 1), counted)]
    m = among.sum()
    k = max(1, int(np.floor((1 - epsilon) * m + 1e-6)))
    goes_by_loss = loss == "mae" and SCORES[method] != "loss"
    ties = [run.losses if goes_by_loss else np.zeros(len(counted)) for run in runs]
    weights = [keep(lowest(score, among, k, tie), counted) for score, tie in zip(scores, ties, strict=True)]
    # Algorithm 4, and Yu et al. (2019): each network learns from what the other one selected.
    return weights[::-1]


def lowest(scores, counted, count, ties=None):
    """Positions of the `count` lowest scores among the counted examples, or of all m if m < count.

    Of equal scores the lower of `ties` goes first, and of equal ones of these the earlier position.
    """
    ties = np.zeros(len(scores)) if ties is None else ties
    ranked = sorted(np.flatnonzero(counted), key=lambda i: (scores[i], ties[i], i))
    return ranked[:count]


def keep(kept, counted):
    """Weights [n]: m / (number kept) at the kept positions, else 0; all 0 where none is kept."""
    weights = np.zeros(len(counted))
    for i in kept:
        weights[i] = counted.sum() / len(kept)
    return weights


def clip_factor(norm, max_norm):
    """min(1, max_norm / norm), and 1 for norm 0."""
    return 1.0 if norm <= max_norm else max_norm / norm


def global_norm(arrays):
    """L2 norm of all entries of a list of arrays."""
    return np.sqrt(sum(np.sum(np.square(a)) for a in arrays))
