"""Who is who: the table of images, its splits and digest, and the prepared dataset on disk.

Raw layouts do not belong here: readers make `dataset.Dataset`. The way in is `prepared.load_prepared`.
"""
