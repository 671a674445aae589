"""The version, which the wheel has too."""

__version__ = "0.2.0"
