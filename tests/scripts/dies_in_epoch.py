"""Run a training script in which the process RANK dies in an epoch: `dies_in_epoch.py RANK EPOCH SCRIPT [FLAGS]`."""

import os
import runpy
import signal
import sys
from pathlib import Path

from clipfh.training.loop import Loop

if __name__ == "__main__":
    rank, epoch, *sys.argv = sys.argv[1:]
    update = Loop._update

    def dying_update(self, *arguments, **keywords):
        if os.environ["RANK"] == rank and self.epoch + 1 == int(epoch):
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *arguments, **keywords)

    Loop._update = dying_update
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
