"""The weights that stage 3 starts from: stage 2's, an earlier variant's, stage 4's, or a pretrained CLIP's."""

from pathlib import Path

from clipfh.core.errors import InputError
from clipfh.core.paths import display, stage_dir
from clipfh.models.checkpoint import newest_checkpoint
from clipfh.models.pretrained import STAGE4
from clipfh.tables.prepared import PreparedDataset

SOURCES = ("stage2", "v1", "v2", "v3", "v4", STAGE4)  # words that --init_ckpt takes for "the newest BEST of"


def start_weights(
    resume_ckpt: Path | None, init_ckpt: str | None, pretrained: str | None, data: PreparedDataset
) -> str | None:
    """The run to resume, `--init_ckpt` (of the same dataset, where it is a word of `SOURCES`), else `--pretrained`.

    Raises:
        InputError: there is no such checkpoint.
    """
    if resume_ckpt:
        return str(resume_ckpt)  # it knows its image size
    if not init_ckpt:
        return pretrained
    if init_ckpt not in SOURCES:
        if not Path(init_ckpt).is_file():
            raise InputError(f"--init_ckpt {init_ckpt} is neither a file nor one of {', '.join(SOURCES)}")
        return init_ckpt
    if init_ckpt == STAGE4:
        return STAGE4  # of whatever data it was aligned on
    if init_ckpt == "stage2":
        stage, script, wanted = 2, "train_clip_img_encoder_finetune.py", {}
    else:
        stage, script, wanted = 3, f"train_clip_joint_encoders_{init_ckpt}.py", {"variant": init_ckpt}
    command = f"python {display(stage_dir(stage) / script)} --dataset {data.name}"
    found = newest_checkpoint(
        stage, "*_BEST.pth", made_by=command, data_digest=data.digest, dataset=data.name, **wanted
    )
    return str(found)
