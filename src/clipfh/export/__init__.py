"""Take a checkpoint elsewhere: folders that open_clip, transformers and onnxruntime load by themselves.

Here: how each library wants its files, the check that it computes the same from them, the model card. Not here: how
the checkpoint came about.
"""
