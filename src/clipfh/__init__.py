"""Staged fine-tuning of CLIP for identity retrieval: the library that the stage scripts share.

Rooms, from the ground up; imports run downwards only (`tests/test_rooms.py`):

    core                            what any part needs
    losses, metrics                 pure mathematics
    images, models                  photos to pixels to features
    prompts, features               text of an item; features saved
    tables                          who is who, splits, the prepared dataset
    index                           search in many photos
    drawn                           generated data
    datasets, captions              one reader a raw dataset
    reports                         what people look at
    training                        what every training shares
    evaluation                      the one evaluation of all stages
    pipeline, export, app           the steps behind run_all.sh; a model for other libraries; the search page

A package's docstring says what belongs there. Modules are imported by name, and few packages import theirs: who reads
a checkpoint (`clipfh.models.checkpoint`) need not wait for open_clip, which takes `clipfh.models.clip` seconds.
"""

__version__ = "0.1.0"
