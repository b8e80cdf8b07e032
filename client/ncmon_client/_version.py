"""The version of this distribution, alone so that everything may read it."""

__version__ = "0.1.0"
