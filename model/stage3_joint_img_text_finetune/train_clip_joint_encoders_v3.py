"""Stage 3, variant v3: `train_clip_joint_encoders.py --variant v3`. presets.py says what it changes."""

from dataclasses import dataclass

import train_clip_joint_encoders as joint  # first: it finds the project's environment

from clipfh.core.cli import option, run_script


@dataclass(frozen=True)
class Config(joint.Config):
    """The command line of stage 3 with another default."""

    variant: str = option("v3", "this script's preset", choices=("v3",))


if __name__ == "__main__":
    run_script(joint.main, Config, joint.__doc__)
