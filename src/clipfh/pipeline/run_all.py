"""The staged pipeline of `bash run_all.sh`: which scripts run, with which flags, and what they leave."""

import copy
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipfh.core.cli import run_script
from clipfh.core.errors import InputError
from clipfh.core.paths import ROOT, SMALL_MODEL, STAGE0_SCRIPTS, TINY_MODELS, display, stage_dir
from clipfh.pipeline.options import HELP, Options, checked
from clipfh.pipeline.steps import Step, duration, end_on_signals, recorded, run_step

Flags = list[str]


class Pipeline:
    """What the steps of one run share: names, folders, and the flags that go to several scripts."""

    def __init__(self, options: Options) -> None:
        self.options = options
        # what the metadata folder and the rows of the table are called; a smoke run touches nothing of a real one
        self.name = f"{options.dataset}_smoke" if options.smoke else options.dataset
        self.apart = "/smoke" if options.smoke else ""
        self.metadata = f"metadata/{self.name}"
        self.logs = Path("results", "logs", f"{self.name}_{options.model.replace('/', '-')}")
        pretrained = of_stage4(options.model) if options.pretrained == "stage4" else options.pretrained
        self.weights = flags(model=options.model, pretrained=pretrained)
        self.on_data = flags(dataset=self.name, device=options.device)
        self.on_data += [] if options.exclude_same_camera else ["--no-exclude_same_camera"]
        self.evaluating = [*self.on_data, *(flags(results_dir=f"results{self.apart}") if options.smoke else [])]
        self.seed = 0
        self.taken: set[str] = set()

    def with_seed(self, seed: int) -> "Pipeline":
        """The same run, for the stages that train with this seed."""
        run = copy.copy(self)
        run.seed = seed
        return run

    @property
    def training(self) -> Flags:
        """Flags of a training."""
        options = self.options
        return flags(seed=self.seed, epochs=options.epochs) + (["--smoke"] if options.smoke else [])

    def named(self, step: str) -> str:
        """The name of a step that is taken once for each training seed; for seed 0 it is the step's own."""
        return f"{step}_seed{self.seed}" if self.seed else step

    def step(
        self, name: str, script: str, arguments: Flags, *, forced: bool = False, nproc: int = 1, **files: Any
    ) -> None:
        """Run `python <script>`, unless it is finished; a failure ends the run with the command's exit code.

        `script` may also be `-m MODULE`. What several seeds share is taken once. `nproc` processes of it are started by
        torchrun.
        """
        if name in self.taken:
            return
        self.taken.add(name)
        folder = Path(script).parent
        inputs = [f"{folder}/*.py", f"{folder}/config/*.yaml"] if folder.parent.name == "model" else []
        launcher: Flags = []
        if nproc > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
            # unless set, torchrun takes one thread a process, and says so
            files["variables"] = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // nproc, 1))}
            if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup, which torchrun would overrule
                files["variables"]["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGQUIT"
        step = Step(
            name, self.logs / f"{name}.log", ["python", *launcher, *script.split(), *arguments], inputs=inputs, **files
        )
        if code := run_step(step, force=forced or self.options.force):
            sys.exit(code)

    def made_by(self, name: str, pattern: str) -> str | None:
        """The newest file that a finished step left, None without one."""
        found = recorded(self.logs / f"{name}.log", pattern)
        return found[-1] if found else None

    def where(self, folder: str) -> Flags:
        """A training's folders, where they are not its own."""
        if not self.options.smoke:
            return []
        return flags(save_path=f"{folder}/checkpoints{self.apart}", log_dir=f"{folder}/logs{self.apart}")

    def recipe(self, folder: str, *first: str) -> Flags:
        """The files `first`, then those that suit model and photos, over those that a stage reads by itself."""
        files = [file for name in first if (ROOT / (file := f"{folder}/config/{name}.yaml")).is_file()]
        files += suiting_files(folder, self.options.model, self.options.dataset)
        return ["--config", *files] if files else []


def suiting_files(folder: str, model: str, dataset: str) -> list[str]:
    """The recipes of a stage that suit model and kind of dataset, of those that the stage does not read by itself."""
    suits = {
        "tiny_photos": model in TINY_MODELS and dataset != "synthetic",
        "words": model == SMALL_MODEL and dataset == "synthetic",
        "hands": dataset in ("hands11k", "hd"),
    }
    files = [f"{folder}/config/{name}.yaml" for name in suits if suits[name]]
    return [file for file in files if (ROOT / file).is_file()]


def flags(**values: object) -> Flags:
    """`model="RN50"` as `--model RN50`; None is left out."""
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def of_stage4(model: str) -> str:
    """The newest CLIP of stage 4 of a model by its path, so that steps that used an older one are run again."""
    name = f"*_{model.replace('/', '-')}_CLIP.pth"
    found = sorted((stage_dir(4) / "checkpoints").glob(name), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise InputError(f"--pretrained stage4: stage 4 has made no {model} yet; see its README, 'A start of your own'")
    return display(found[-1])


def prepare_data(run: Pipeline) -> None:
    """Scripts 00 to 05: the dataset's metadata."""
    options, metadata = run.options, run.metadata
    is_synthetic = options.dataset == "synthetic"
    raw = str(options.data_root or f"data/raw/{run.name}")
    source = flags(dataset=options.dataset, metadata_dir=metadata)
    # whose tokens the prompts have to fit into; the tiny models read CLIP's, as the scripts assume
    tokenizer = [] if options.model in TINY_MODELS else flags(model=options.model)
    making = flags(name=run.name, data_root=raw) + (["--num_identities", "48"] if is_synthetic and run.apart else [])

    def step(name: str, script: str, extra: Flags, files: str, *, after: str, forced: bool = False) -> None:
        outputs = [f"{metadata}/{file}" for file in files.split()]
        outputs += [raw] if name == "00_prepare" and is_synthetic else []
        run.step(name, f"preprocessing/{script}", source + extra, after=after.split(), outputs=outputs, forced=forced)

    # 00 is quick, and the only step that sees a change in the raw data
    files = "dataset.json image_paths.json descriptions.json"
    step("00_prepare", "00_prepare_dataset.py", making, files, after="", forced=not is_synthetic)
    files = "image_prompts_per_identity.json"
    step("01_prompts", "01_generate_prompts_from_descriptions.py", [], files, after="00_prepare")
    files = "prompt_consistency.csv prompt_token_lengths.png"
    step("02_analysis", "02_analyze_prompt_consistency.py", tokenizer, files, after="01_prompts")
    files = "image_paths_clean.json image_prompts_clean.json"
    step("03_filter", "03_filter_valid_identities.py", [], files, after="01_prompts")
    files = "image_prompts_cleaned_for_v4.json"
    step("04_structured_prompts", "04_generate_structured_prompts_for_v4.py", tokenizer, files, after="00_prepare")
    step("05_splits", "05_make_retrieval_splits.py", [], "image_splits.json", after="00_prepare")


def stage0(run: Pipeline) -> None:
    """Weights of a small CLIP: pretrained parts put together, or a tiny one trained on generated garments."""
    options, folder = run.options, "model/stage0_pretrain"
    arguments: Flags = []
    if options.model != SMALL_MODEL:
        # one start for all seeds of the training: what is compared is the training
        arguments = flags(model=options.model, seed=0, device=options.device) + run.where(folder)
    arguments += [f"--{name}" for name in ("force", "smoke") if getattr(options, name)]
    outputs = [f"{folder}/checkpoints{run.apart}/{options.model}_*.pth"]
    run.step("10_stage0_weights", f"{folder}/{STAGE0_SCRIPTS[options.model]}", arguments, outputs=outputs)
    run.weights += flags(pretrained=run.made_by("10_stage0_weights", "*.pth"))


def stage1(run: Pipeline) -> None:
    """Zero-shot."""
    folder = "model/stage1_zeroshot"
    arguments = run.evaluating + run.weights + run.recipe(folder)
    before = ["04_structured_prompts", "05_splits", "10_stage0_weights"]
    evaluate(run, "20_stage1_zeroshot", f"{folder}/evaluate_clip_zeroshot.py", 1, arguments, after=before)


def stage2(run: Pipeline) -> None:
    """The image encoder."""
    folder, trained = "model/stage2_img_encoder_finetune", run.named("30_stage2_train")
    train(run, trained, f"{folder}/train_clip_img_encoder_finetune.py", [], after=[])
    arguments = run.evaluating + flags(ckpt=run.made_by(trained, "*_BEST.pth"))
    name, before = run.named("31_stage2_evaluate"), [trained, "05_splits"]
    evaluate(run, name, f"{folder}/eval_clip_img_encoder.py", 2, arguments, after=before)


def stage3(run: Pipeline) -> None:
    """Both encoders, from the checkpoint of stage 2 with the same seed; v3 goes on from v2."""
    folder, before = "model/stage3_joint_img_text_finetune", run.named("30_stage2_train")
    start = run.made_by(before, "*_BEST.pth")
    if start is None and (run.logs / f"{before}.json").exists():
        print("note: stage 2 was trained on other photos, splits or weights than there are now: it is trained again")
        stage2(run)
        start = run.made_by(before, "*_BEST.pth")
    if start is None:
        print("note: stage 2 has not been run here; stage 3 starts from the pretrained weights")
    last = run.options.variant
    for variant in ("v2", "v3") if last == "v3" else (last,):
        name, arguments = run.named(f"40_stage3_{variant}_train"), flags(variant=variant, init_ckpt=start)
        train(run, name, f"{folder}/train_clip_joint_encoders.py", arguments, after=[before])
        start, before = run.made_by(name, "*_BEST.pth"), name
    arguments = run.evaluating + flags(variant=last, ckpt=start)
    name = run.named(f"41_stage3_{last}_evaluate")
    evaluate(run, name, f"{folder}/eval_clip_joint.py", 3, arguments, after=[before, "05_splits"])


def soup(run: Pipeline, number: int) -> None:
    """The mean of the weights of all seeds' trainings of stage 2 or 3, and its evaluation."""
    options, variant = run.options, run.options.variant
    if number == 2:
        folder, script = "model/stage2_img_encoder_finetune", "eval_clip_img_encoder.py"
        trained, mixed, evaluated = "30_stage2_train", "32_stage2_soup", "33_stage2_soup_evaluate"
    else:
        folder, script = "model/stage3_joint_img_text_finetune", "eval_clip_joint.py"
        trained, mixed, evaluated = (
            f"{step}_stage3_{variant}_{what}" for step, what in ((40, "train"), (42, "soup"), (43, "soup_evaluate"))
        )
    of_seeds = [run.with_seed(seed).named(trained) for seed in options.training_seeds]
    arguments = ["--ckpts", *filter(None, (run.made_by(one, "*_BEST.pth") for one in of_seeds))]
    arguments += flags(device=options.device) + ([] if options.exclude_same_camera else ["--no-exclude_same_camera"])
    outputs = [f"{folder}/checkpoints{run.apart}/*_soup{len(of_seeds)}.pth"]
    run.step(mixed, "-m clipfh.training.soup", arguments, after=of_seeds, outputs=outputs)
    arguments = run.evaluating + flags(ckpt=run.made_by(mixed, "*.pth"))
    evaluate(run, evaluated, f"{folder}/{script}", number, arguments, after=[mixed, "05_splits"])


def train(run: Pipeline, name: str, script: str, arguments: Flags, *, after: list[str]) -> None:
    """A training on identities."""
    folder = str(Path(script).parent)
    arguments = arguments + run.on_data + run.weights + run.training + run.recipe(folder) + run.where(folder)
    arguments += ["--final_fit"] if run.options.final_fit else []
    after = ["03_filter", "04_structured_prompts", "10_stage0_weights", *after]
    outputs = [f"{folder}/checkpoints{run.apart}/*_BEST.pth"]
    run.step(name, script, arguments, nproc=run.options.nproc, after=after, outputs=outputs)


def evaluate(run: Pipeline, name: str, script: str, stage: int, arguments: Flags, *, after: list[str]) -> None:
    """An evaluation on identities: a row in the table."""
    results = f"results{run.apart}"
    outputs = [f"{results}/{run.name}_stage{stage}_*/metrics.json"]
    run.step(name, script, arguments, after=after, outputs=outputs, appends=[f"{results}/summary.csv"])


def stage4(run: Pipeline) -> None:
    """An image encoder to the frozen text encoder, on captions."""
    options, folder = run.options, "model/stage4_frozen_text_alignment"
    name = f"{options.captions}_captions{'_smoke' if options.smoke else ''}"
    captions = flags(dataset=options.captions, data_root=options.captions_root)
    if options.captions == "identities":
        name = f"{run.name}_identities"
        captions = flags(dataset=options.captions, data_root=run.metadata, name=name)
    captions += flags(num_val=options.captions_val, num_test=options.captions_test)
    # quick where nothing has changed: it looks at the raw files
    run.step(
        "50_stage4_captions",
        f"{folder}/prepare_captions.py",
        captions + (["--smoke"] if options.smoke else []),
        outputs=[f"metadata/{name}/captions.json"],
        forced=options.captions != "synthetic",
    )
    suited: Flags = []
    if options.captions == "identities":  # becomes a start of stages 1 to 3
        suited = flags(image_encoder="clip") + run.recipe(folder, "own_products")
    elif options.captions == "grocery":
        products = "own_products" if options.model == SMALL_MODEL else "products"
        suited = flags(config=f"{folder}/config/{products}.yaml")
    arguments = captions + flags(device=options.device) + run.weights + run.training + suited + run.where(folder)
    checkpoints = f"{folder}/checkpoints{run.apart}"
    trained = run.named("51_stage4_train")
    run.step(
        trained,
        f"{folder}/train_frozen_text_alignment.py",
        arguments,
        nproc=run.options.nproc,
        after=["50_stage4_captions", "10_stage0_weights"],
        outputs=[f"{checkpoints}/*_BEST.pth", f"{checkpoints}/*_LINEAR.pth"],
    )
    arguments = flags(dataset=options.captions, device=options.device, results_dir=f"results{run.apart}")
    arguments += flags(ckpt=run.made_by(trained, "*_BEST.pth"))
    outputs = [f"results{run.apart}/{name}_stage4_*/metrics.json"]
    script = f"{folder}/eval_frozen_text_alignment.py"
    run.step(run.named("52_stage4_evaluate"), script, arguments, after=[trained], outputs=outputs)


def stage5(run: Pipeline) -> None:
    """Two GANs around the frozen CLIP, and an unconditional one to compare with."""
    options, folder = run.options, "model/stage5_text_image_gan"
    arguments = flags(device=options.device, seed=run.seed) + run.weights + flags(dataset=options.faces)
    if options.epochs:
        arguments += ["--img2text.epochs", str(options.epochs), "--text2img.epochs", str(options.epochs)]
    arguments += ["--smoke"] if options.smoke else []
    # also on a machine with a GPU, whose defaults are for ViT-B/32 and large photos
    suits = {"small": options.model in STAGE0_SCRIPTS, "any_clip": options.model not in ("ViT-B/32", "ViT-B-32")}
    config = [f"{folder}/config/{name}.yaml" for name in suits if suits[name]][:1]
    generators = [f"{folder}/checkpoints{run.apart}/text_image_gan_*/text2img_generator_*.pth"]
    made = {"after": ["10_stage0_weights"], "outputs": generators}
    trained, baseline = run.named("60_stage5_train"), run.named("61_stage5_baseline")
    run.step(trained, f"{folder}/train.py", arguments + (["--config", *config] if config else []), **made)
    plain = ["--gans", "text2img", "--config", *config, f"{folder}/config/plain.yaml"]
    run.step(baseline, f"{folder}/train.py", arguments + plain, **made)
    arguments = flags(device=options.device, results_dir=f"results{run.apart}")
    for flag, name in (("run_dir", trained), ("baseline_dir", baseline)):
        arguments += flags(**{flag: Path(run.made_by(name, "*text2img_generator_*.pth") or "").parent})
    if options.smoke:
        arguments += flags(classifier_dir=f"{folder}/checkpoints{run.apart}", classifier_epochs=1)
    outputs, name = [f"results{run.apart}/*_stage5_*/metrics.json"], run.named("62_stage5_evaluate")
    run.step(name, f"{folder}/evaluate.py", arguments, after=[trained, baseline], outputs=outputs)


STAGES: tuple[Callable[[Pipeline], None], ...] = (stage0, stage1, stage2, stage3, stage4, stage5)
TRAINED = (2, 3, 4, 5)  # once with each seed


def main(options: Options) -> None:
    """Check the options; run the steps of the chosen stages, one after the other, those that train for each seed."""
    options = checked(options)
    if options.setup_only:
        print(f"set-up is done: {sys.executable}")
        return
    os.chdir(ROOT)
    run, started = Pipeline(options), time.monotonic()
    end_on_signals()
    on_identities = not {1, 2, 3}.isdisjoint(options.wanted)
    if on_identities or options.captions == "identities":
        prepare_data(run)
    numbers = sorted({*options.wanted, *([0] if options.makes_weights else [])})
    for number in numbers:
        if number not in TRAINED:
            STAGES[number](run)
    for seed in options.training_seeds:  # one after the other: what is stopped early has whole seeds
        for number in numbers:
            if number in TRAINED:
                STAGES[number](run.with_seed(seed))
    for number in numbers if options.soup else []:
        if number in (2, 3):
            soup(run, number)
    if on_identities:  # always: the table ends the run
        table = ["python", "-m", "clipfh.reports.results_table", "--results_dir", f"results{run.apart}"]
        if code := run_step(Step("90_report", run.logs / "90_report.log", table), force=True):
            sys.exit(code)
    print(f"finished in {duration(time.monotonic() - started)}; logs: {run.logs}")
    if on_identities:
        print(f"figures and pictures, in a browser: results{run.apart}/index.html")
        print(f"search these photos: bash set_up.sh app && {project_python()} -m clipfh.app --dataset {run.name}")


def project_python() -> str:
    """What a user types for the Python that runs this: that of `.venv`, or that of an activated environment."""
    return ".venv/bin/python" if Path(sys.prefix).resolve() == (ROOT / ".venv").resolve() else "python"


if __name__ == "__main__":
    run_script(main, Options, HELP)
