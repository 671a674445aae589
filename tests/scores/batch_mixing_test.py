"""PRL(G) with layers that may mix the examples of a batch: what mixes is refused, and nothing else is."""

import keras
import numpy as np
import pytest
from keras import layers

import prl_keras as prl

pytestmark = pytest.mark.filterwarnings("ignore:.* cannot be vectorized", "ignore:The per-example gradients")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 5, 4)).astype("float32"), np.arange(16) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable("batch_mixing_test")
class OwnCall(keras.Model):
    """Calls its batch normalization with `training=False`, or as it is called itself."""

    def __init__(self, is_frozen=True, wrapped=False):
        super().__init__()
        self.is_frozen, self.normalize, self.head = is_frozen, layers.BatchNormalization(), layers.Dense(3)
        if wrapped:
            self.normalize = layers.TimeDistributed(self.normalize)
        self.flatten = layers.Flatten()

    def call(self, x, training=None):
        x = self.normalize(x, training=False if self.is_frozen else training)
        return self.head(self.flatten(x))


class AlwaysFrozen(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


def sequential(*middle):
    return keras.Sequential([keras.Input((5, 4)), *middle, layers.Flatten(), layers.Dense(3)])


def frozen_base():
    inputs = keras.Input((5, 4))
    base = keras.Model(inputs, layers.BatchNormalization()(inputs))
    base.trainable = False
    return sequential(base)


def functional(nested):
    """As in guides to fine-tuning. Keras's `fit` passes its training=True on to the layer all the same."""
    inputs = keras.Input((5, 4))
    normalize = layers.BatchNormalization()
    base = keras.Model(inputs, normalize(inputs)) if nested else normalize
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(base(inputs, training=False)))), normalize


def fit(model):
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


MIXES_NOT = {
    "own_call": OwnCall,
    "own_call_wrapped": lambda: OwnCall(wrapped=True),
    "always_frozen": lambda: sequential(AlwaysFrozen()),
    "frozen_base": frozen_base,
    "nested_own_call": lambda: keras.Sequential([keras.Input((5, 4)), OwnCall()]),
    "spectral": lambda: sequential(layers.SpectralNormalization(layers.Dense(4))),
    "fixed_batch": lambda: keras.Sequential(
        [keras.Input(batch_shape=(8, 5, 4)), layers.LSTM(3, unroll=True), layers.Dense(3)]
    ),
}


@pytest.mark.daily("always_frozen", "frozen_base")
@pytest.mark.fault(41)
@pytest.mark.parametrize("name", MIXES_NOT)
def test_what_does_not_mix_trains_as_in_keras(name):
    keras.utils.set_random_seed(0)
    expected = fit(MIXES_NOT[name]())
    keras.utils.set_random_seed(0)
    model = prl.RobustModel(MIXES_NOT[name](), "gradient", prl.Trim(0.0))
    for a, b in zip(expected, fit(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.fault(41)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_check_says_so(is_frozen):
    model = prl.RobustModel(OwnCall(is_frozen), "gradient")
    model.compile("sgd", LOSS)
    said = str(prl.check(model, (X[:8], Y[:8])))
    assert ("none that mixes examples" in said) == is_frozen
    assert ("GroupNormalization" in said) != is_frozen


@pytest.mark.fault(41)
@pytest.mark.parametrize("nested", [False, True])
def test_keras_itself_overrides_training_false_in_a_functional_network(nested):
    """If this fails, Keras has mended it, and the network below needs no freezing."""
    network, normalize = functional(nested)
    fit(network)
    assert np.abs(normalize.moving_mean.numpy()).max() > 0
    with pytest.raises(prl.BatchMixingError, match=r"trainable = False; Keras's fit overrides"):
        prl.RobustModel(network, "gradient")
    normalize.trainable = False
    before = normalize.moving_mean.numpy()
    fit(prl.RobustModel(network, "gradient"))
    np.testing.assert_array_equal(normalize.moving_mean, before)


@pytest.mark.fault(41)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_subclass_that_mixes_is_refused_at_its_first_batch(wrapped):
    network = OwnCall(is_frozen=False, wrapped=wrapped)
    model = prl.RobustModel(network, "gradient")
    with pytest.raises(prl.BatchMixingError, match=r"batch_normalization.*GroupNormalization"):
        fit(model)
    with pytest.raises(prl.BatchMixingError):
        prl.scores.gradient_norm(X, Y, network, LOSS)
    assert (network.normalize.weights[-2].numpy() == 0).all()  # the moving mean


@pytest.mark.daily("plain-*")
@pytest.mark.fault(41)
@pytest.mark.parametrize("options", [{"score": "gradient"}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.Bidirectional], ids=["plain", "bidirectional"])
def test_stateful_recurrences_are_refused_in_a_sentence(options, wrap):
    recurrent = wrap(layers.LSTM(4, stateful=True, name="remembers"))
    network = keras.Sequential([keras.Input(batch_shape=(8, 5, 4)), recurrent, layers.Dense(3)])
    with pytest.raises(ValueError, match=r"stateful=True keeps a state .*remembers.*stateful=False"):
        prl.RobustModel(network, **options)
    if "score" in options:
        with pytest.raises(ValueError, match="stateful=True keeps a state"):
            prl.scores.gradient_norm(X[:8], Y[:8], network, LOSS)
    assert all(np.isfinite(w).all() for w in fit(prl.RobustModel(network)))  # PRL(L) trains it
