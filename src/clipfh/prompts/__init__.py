"""The text of an item: descriptions, plain and token-safe prompts, counted by a model's own tokenizer, and their files.

Captions of images are a room of their own.
"""
