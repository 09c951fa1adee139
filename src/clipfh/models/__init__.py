"""Build, load, freeze and average models; cache their gradients; read and write checkpoints.

Training them does not belong here. The ways in are `clip.load_clip` and `checkpoint.read_checkpoint`.
"""
