"""A model and its input to features: extracted, saved under a digest and taken again; galleries ranked by them.

Figures and tables for people do not belong here. The ways in are `extraction` and `store.load_features`.
"""
