"""What every training shares: samplers, schedules, the data of train and val, the state that continues a run.

The objective does not belong here: it is the stage's own.
"""
