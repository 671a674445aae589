"""The wheel has the library and `tuning`; PRL_KERAS_EXPERIMENTS=1 pip wheel . adds the experiments."""

import os

from setuptools import find_packages, setup

EXCLUDED = () if os.environ.get("PRL_KERAS_EXPERIMENTS") == "1" else ("prl_keras.experiments*",)

setup(packages=find_packages(include=["prl_keras*"], exclude=EXCLUDED))
