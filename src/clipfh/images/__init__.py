"""From a file to a network's input: which files are photos, decoding, the cache of pixels, views of augmentation.

What a dataset means does not belong here. The ways in are `pixels.load_pixels` and `augment.Augmentation`.
"""
