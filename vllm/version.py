"""The version; setup reads it from here."""

__version__ = "0.1.0"
__version_tuple__ = (0, 1, 0)
