"""What any part needs: flags and settings, errors, whole files, paths, values of users' files, a run's seed and log.

Nothing here knows an image, a model or a dataset.
"""
