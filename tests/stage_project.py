"""A checkout of its own with a tiny prepared dataset, for the tests that run the stages' scripts."""

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from places import ROOT
from script_server import ScriptServer

STAGE0 = "model/stage0_pretrain/pretrain_tiny_clip.py"
STAGE1 = "model/stage1_zeroshot/evaluate_clip_zeroshot.py"
STAGE2 = "model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py"
EVAL2 = "model/stage2_img_encoder_finetune/eval_clip_img_encoder.py"
STAGE3 = "model/stage3_joint_img_text_finetune/train_clip_joint_encoders.py"
EVAL3 = "model/stage3_joint_img_text_finetune/eval_clip_joint.py"
NAME = "shapes"
COLORS = ("red", "green", "blue", "orange", "purple", "black", "teal", "brown")
SHAPES = ("square", "circle")
PHOTOS = 4  # of each of the 16 identities
FEWER_PICTURES = ("--no-clustering", "--no-saliency")  # where the pictures of an evaluation are not the question


@dataclass
class Project:
    """The checkout, its dataset, and the way to run a script in it."""

    root: Path
    photos: Path
    server: ScriptServer
    commit: str | None
    runs: dict[str, subprocess.CompletedProcess] = field(default_factory=dict)

    @property
    def metadata(self) -> Path:
        return self.root / "metadata" / NAME

    def run(self, script: str, *arguments: object, name: str = NAME) -> subprocess.CompletedProcess:
        """Run a script of model/ on the dataset; it must succeed, without a warning."""
        dataset = () if script == STAGE0 else ("--dataset", name)
        if "--smoke" in arguments and "--save_path" not in arguments:  # not apart, as if they were real runs
            folder = (self.root / script).parent
            arguments += ("--save_path", folder / "checkpoints", "--log_dir", folder / "logs")
        result = self.server.run(script, *dataset, *arguments)
        assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
        assert "Warning" not in result.stderr, result.stderr
        return result

    def refused(self, script: str, *arguments: object, says: Sequence[str]) -> subprocess.CompletedProcess:
        """Run a script that must end with a user's error that holds each text of `says`."""
        result = self.server.run(script, *arguments)
        assert result.returncode == 2, f"{result.args}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        message = result.stderr[result.stderr.rindex("error: ") :]
        for text in says:
            assert text in message, message
        return result

    def checkpoints(self, script: str) -> Path:
        return (self.root / script).parent / "checkpoints"

    def best(self, script: str, variant: str) -> Path:
        """The newest BEST of a variant beside `script`."""
        found = sorted(self.checkpoints(script).glob("*_BEST.pth"), key=lambda path: path.stat().st_mtime_ns)
        return [path for path in found if load(path)["variant"] == variant][-1]


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def draw_photos(folder: Path) -> None:
    """`folder/<colour>_<shape>/<n>.jpg`, 48 px, and prompts.json; two prompts for some identities."""
    generator, prompts = random.Random(0), {}
    for number, (color, shape) in enumerate((color, shape) for color in COLORS for shape in SHAPES):
        item_id = f"{color}_{shape}"
        (folder / item_id).mkdir(parents=True)
        for photo in range(PHOTOS):
            image = Image.new("RGB", (48, 56), generator.choice(["white", "lightgrey", "beige", "ivory"]))
            x, y, side = generator.randint(2, 14), generator.randint(2, 20), generator.randint(16, 30)
            draw = ImageDraw.Draw(image)
            (draw.rectangle if shape == "square" else draw.ellipse)((x, y, x + side, y + side), fill=color)
            image.save(folder / item_id / f"{photo}.jpg", quality=90)
        prompts[item_id] = [f"a {color} {shape}", f"{shape} in {color}"] if number % 3 else f"a {color} {shape}"
    write_json(folder / "prompts.json", prompts)


def make_checkout(folder: Path) -> ScriptServer:
    """Copy the sources to `folder`/checkout, whose scripts the server runs."""
    root = folder / "checkout"
    root.mkdir()
    for name in ("project_environment.py", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("src", "model", "preprocessing"):
        left_out = shutil.ignore_patterns("checkpoints", "logs", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    # a model that starts in a second, and figures of few pixels and rows: what is tested here is the same for all
    change(root / "src/clipfh/core/paths.py", "DEFAULT_MODEL = SMALL_MODEL", "DEFAULT_MODEL = TINY_MODELS[0]")
    change(root / "src/clipfh/reports/drawing.py", "\nDPI = 150", "\nDPI = 30")
    change(root / "src/clipfh/evaluation/rankings.py", "\nFIGURE_ROWS = 6", "\nFIGURE_ROWS = 2")
    return ScriptServer(root, folder, HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"), TORCH_HOME=str(folder / "hub"))


def make_project(server: ScriptServer) -> Project:
    """Draw and prepare the dataset beside the server's checkout, make a small CLIP with stage 0."""
    root = server.root
    photos = root.parent / "photos"
    draw_photos(photos)
    project = Project(root, photos, server, make_commit(root))
    prepare(project, "00_prepare_dataset.py", "--data_root", project.photos, "--name", NAME)
    for script in sorted(path.name for path in (root / "preprocessing").glob("0[1-5]_*.py")):
        prepare(project, script, "--metadata_dir", project.metadata)
    project.runs["stage0"] = project.run(STAGE0, "--smoke")
    return project


def change(file: Path, old: str, new: str) -> None:
    code = file.read_text(encoding="utf-8")
    assert code.count(old) == 1
    file.write_text(code.replace(old, new), encoding="utf-8")


def prepare(project: Project, script: str, *arguments: object) -> None:
    result = project.server.run(f"preprocessing/{script}", "--dataset", "folder", *arguments)
    assert result.returncode == 0, result.stderr


def make_commit(root: Path) -> str | None:
    """Make `root` a git checkout, so that runs have a commit to record; None where there is no git."""
    if shutil.which("git") is None:
        return None
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
    subprocess.run(["git", "-C", str(root), *author, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return found.stdout.strip()
