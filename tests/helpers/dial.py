"""An epsilon that is set from outside: one graph for all of them."""

import keras


class Dial(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self):
        self.epsilon = keras.Variable(0.0, dtype="float32", trainable=False)

    def __call__(self, step):
        return self.epsilon.value
