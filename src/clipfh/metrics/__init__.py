"""Retrieval measured: ranks of matches, Rank-k, mAP and mINP, clusters, their statistics. Tensors in, numbers out.

No files, models or names of datasets. The way in is `retrieval.evaluate_retrieval`.
"""
