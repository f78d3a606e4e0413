"""Evaluation of a model. mteb and lm-eval do the work; the modules of their names have the classes
that they evaluate. Neither is imported before its module is."""

from .instructions import instruction_of, published

__all__ = ["instruction_of", "published"]
