"""distmeta: few-shot meta-training at cluster scale."""

from importlib.metadata import version

__version__ = version("distmeta")
