"""The version, which the wheel has too."""

__version__ = "0.2.0"
"""The version of prl_keras, as in the wheel; semantic versioning."""
