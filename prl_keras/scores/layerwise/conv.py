"""Per-example gradients of convolutions, or their norms alone: see `layers`.

z_t = sum_o h_{s t + l o} W_o + b,      offsets o in the kernel, strides s, dilations l
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.scores.layerwise.contribution import Contribution, direct, direct_is_small, from_gram, to_bias

# Entries copied per example to save products: 16 MB for 32 examples, which a GPU writes in the microseconds
# that a kernel launch takes.
_COPIED = 2**17


def linear(layer: Any, h: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """z, as the layer computes it."""
    padding = layer.padding
    if padding == "causal":
        h, padding = keras.ops.pad(h, layer._compute_causal_padding()), "valid"
    z = keras.ops.conv(
        h, kernel, list(layer.strides), padding, layer.data_format, dilation_rate=layer.dilation_rate
    )
    if bias is None:
        return z
    axes = [1] * layer.rank
    return z + tf.reshape(bias, [1, *axes, -1] if layer.data_format == "channels_last" else [1, -1, *axes])


def contributions(layer: Any, h: tf.Tensor, d: tf.Tensor) -> list[Contribution]:
    """The `Contribution` of each example to the kernel and the bias.

    Args:
        layer: A Conv1D, Conv2D or Conv3D.
        h: Inputs, in the layer's data format; all sizes but the batch are known.
        d: The gradients with respect to z.
    """
    if layer.data_format == "channels_first":
        last = [0, *range(2, layer.rank + 2), 1]
        h, d = tf.transpose(h, last), tf.transpose(d, last)
    held = math.prod(h.shape[1:]) + math.prod(d.shape[1:])
    h = _padded(layer, h, d)
    matrices = 2 * layer.groups * math.prod(h.shape[1:-1]) ** 2
    if direct_is_small(math.prod(layer.kernel.shape), held, matrices):
        kernel = direct(_gradients(layer, h, d))
    else:
        kernel = _gram(layer, h, d)
    return [kernel, to_bias(tf.reshape(d, [-1, math.prod(d.shape[1:-1]), layer.filters]))]


def _span(layer, d):
    """The number of inputs that the positions span along each axis, for a kernel of size 1."""
    return [(size - 1) * stride + 1 for size, stride in zip(d.shape[1:-1], layer.strides)]


def _padded(layer, h, d):
    """h `[batch, ..., channels]` with its padding, cut to the inputs that the kernel reads."""
    reach = [(k - 1) * step for k, step in zip(layer.kernel_size, layer.dilation_rate)]
    need = [a + b for a, b in zip(_span(layer, d), reach)]
    paddings = []
    for size, needed, r in zip(h.shape[1:-1], need, reach):
        missing = max(needed - size, 0)
        before = {"valid": 0, "same": missing // 2, "causal": r}[layer.padding]
        paddings.append([before, max(needed - size - before, 0)])
    h = tf.pad(h, [[0, 0], *paddings, [0, 0]])
    return h[(slice(None), *(slice(0, n) for n in need))]


def _grouped(t, positions, groups):
    """`[batch, ..., channels]` -> `[batch, groups, positions, channels / groups]`."""
    if groups == 1:
        return tf.reshape(t, [-1, 1, positions, t.shape[-1]])
    return tf.transpose(tf.reshape(t, [-1, positions, groups, t.shape[-1] // groups]), [0, 2, 1, 3])


def _fields(t, positions, groups):
    """`[batch, positions * offsets, channels]` -> `[batch, groups, positions, offsets * field]`."""
    offsets, field = t.shape[1] // positions, t.shape[-1] // groups
    if groups == 1:
        return tf.reshape(t, [-1, 1, positions, offsets * field])
    t = tf.transpose(tf.reshape(t, [-1, positions, offsets, groups, field]), [0, 3, 1, 2, 4])
    return tf.reshape(t, [-1, groups, positions, offsets * field])


def _gradients(layer, h, d):
    """The kernel's gradient, a list of `[batch, offsets * field, q]` over groups of offsets.

    Offsets whose copies of the inputs are small share a product.
    """
    positions = math.prod(d.shape[1:-1])
    places = _places(layer, h, d)
    products = -(-places.shape[1] // max(1, _COPIED // (positions * h.shape[-1])))
    h = tf.reshape(h, [-1, math.prod(h.shape[1:-1]), h.shape[-1]])
    d = _grouped(d, positions, layer.groups)
    found = []
    for part in np.array_split(places, products, axis=1):
        with tf.control_dependencies(found[-1:]):  # copies for one product at a time
            copies = tf.gather(h, part.reshape(-1), axis=1)
        copies = _fields(copies, positions, layer.groups)
        each = tf.matmul(copies, d, transpose_a=True)  # [batch, groups, offsets * field, q / groups]
        found.append(tf.reshape(tf.transpose(each, [0, 2, 1, 3]), [-1, each.shape[2], layer.filters]))
    return found


def _places(layer, h, d):
    """The indices of each position's inputs in the flattened h: int32 `[positions, offsets]`."""
    offsets = np.indices(layer.kernel_size).reshape(layer.rank, 1, -1)
    positions = np.indices(d.shape[1:-1]).reshape(layer.rank, -1, 1)
    steps = [np.reshape(each, [-1, 1, 1]) for each in (layer.strides, layer.dilation_rate)]
    at = positions * steps[0] + offsets * steps[1]
    return np.ravel_multi_index(tuple(at), h.shape[1:-1]).astype(np.int32)


def _gram(layer, h, d):
    """The `Contribution` to the kernel, from Gram matrices.

    On the grid of the inputs, where d has zeros between its strides, an offset is one shift delta of the
    flattened positions. So sum_o h_{t+o} . h_{s+o} is a sum of shifted copies of *one* matrix h h^T, taken
    axis by axis.
    """
    sizes, spans = h.shape[1:-1], _span(layer, d)
    for axis, (stride, size, span) in enumerate(zip(layer.strides, sizes, spans), start=1):
        d = _spread(d, axis, stride, span, size if axis > 1 else span)
    row_steps = [math.prod(sizes[i + 1 :]) for i in range(layer.rank)]
    length = 1 + sum((span - 1) * step for span, step in zip(spans, row_steps))
    d = _grouped(d, math.prod(d.shape[1:-1]), layer.groups)[:, :, :length]
    h = _grouped(h, math.prod(sizes), layer.groups)
    products = tf.matmul(h, h, transpose_b=True)
    for count, dilation, step in zip(layer.kernel_size, layer.dilation_rate, row_steps):
        deltas = [o * dilation * step for o in range(count)]
        left = products.shape[-1] - deltas[-1]
        products = tf.add_n([products[:, :, delta : delta + left, delta : delta + left] for delta in deltas])
    return from_gram(products, tf.matmul(d, d, transpose_b=True))


def _spread(d, axis, stride, span, size):
    """d with `stride - 1` zeros between its entries along `axis`, cut to `span`, then padded to `size`."""
    if stride > 1:
        shape = [-1, *d.shape[1:]]
        d = tf.expand_dims(d, axis + 1)
        d = tf.pad(d, [[0, stride - 1] if i == axis + 1 else [0, 0] for i in range(len(d.shape))])
        shape[axis] *= stride
        d = tf.reshape(d, shape)
        d = d[(slice(None),) * axis + (slice(0, span),)]
    return tf.pad(d, [[0, size - span] if i == axis else [0, 0] for i in range(len(d.shape))])
