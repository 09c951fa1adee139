"""Captioned images: raw layouts to one table, its digest, retrieval between images and captions, zero-shot classes.

One caption library for what has no identities; prompts of identities are a room of their own.
"""
