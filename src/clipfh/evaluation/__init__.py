"""The one evaluation that every stage of identity retrieval goes through.

Choosing a checkpoint does not belong here: BEST is chosen in training, on val. The way in is `evaluate`.
"""
