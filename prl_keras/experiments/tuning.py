"""The former place of `prl_keras.tuning.tuner`, for programs that import it from here."""

from prl_keras.tuning.tuner import make_tuner  # noqa: F401
