"""Where the checkout and the real photographs beside it are, and the modules beside a stage's scripts."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def stage_module(stage: str, name: str) -> ModuleType:
    """`model/<stage>/<name>.py`; stages have modules of the same name, so it is not made known under it."""
    spec = importlib.util.spec_from_file_location(f"{stage}_{name}", ROOT / "model" / stage / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
