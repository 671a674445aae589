"""What all the tests share."""

import tensorflow as tf

# On a GPU convolutions and matrix products are of 10 bits otherwise, and the oracle is met to 1e-4 only.
tf.config.experimental.enable_tensor_float_32_execution(False)
