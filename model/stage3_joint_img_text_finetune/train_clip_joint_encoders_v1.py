"""Stage 3, variant v1: `train_clip_joint_encoders.py --variant v1`. config/v1.yaml says what it changes."""

from dataclasses import dataclass
from functools import partial

import train_clip_joint_encoders as joint  # first: it finds the project's environment

from clipfh.core.cli import option, run_script
from clipfh.core.config_file import parse_with_files


@dataclass(frozen=True, kw_only=True)
class Config(joint.Config):
    """The command line of stage 3 with another default."""

    variant: str = option("v1", "this script's", choices=("v1",))


if __name__ == "__main__":
    files = partial(joint.recipe, variant="v1")
    run_script(joint.main, Config, joint.__doc__, partial(parse_with_files, files=files), in_processes=True)
