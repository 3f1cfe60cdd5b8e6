"""Plumage: a fine-grained image classification pipeline."""

__version__ = "0.1.0"
