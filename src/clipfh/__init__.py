"""Staged fine-tuning of CLIP for identity retrieval: the library that the stage scripts share."""

__version__ = "0.1.0"
