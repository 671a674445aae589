"""The former place of `prl_keras.tuning.hypermodel`, for programs that import it from here."""

from prl_keras.tuning.hypermodel import RobustHyperModel  # noqa: F401
