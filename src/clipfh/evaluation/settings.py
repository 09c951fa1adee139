"""The flags of an evaluation, and what its rows say of the model."""

from dataclasses import dataclass, field
from pathlib import Path

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.paths import RESULTS_DIR
from clipfh.images.transforms import RESIZE_MODES
from clipfh.metrics.reranking import MAX_ALPHA, MAX_EXPANSION, MAX_K, KReciprocal, QueryExpansion, Reranking
from clipfh.metrics.text_fusion import TextFusion
from clipfh.tables.prepared import TOKEN_SAFE_PROMPTS

_PARAMETERS = {  # of each method of --rerank: flags, and what it calls them
    KReciprocal: {"rerank_k1": "k1", "rerank_k2": "k2", "rerank_lambda": "weight"},
    QueryExpansion: {"aqe_n": "n", "aqe_alpha": "alpha"},
    TextFusion: {"text_weight": "weight"},
}


@dataclass(frozen=True)
class EvaluationConfig:
    """The flags that every evaluation takes."""

    dataset: str | None = option(
        None, "name of the prepared dataset, a folder under metadata/ (default: as --metadata_dir says, else synthetic)"
    )
    metadata_dir: Path | None = option(
        None,
        "metadata folder, or the table's JSON file in it (default: metadata/<dataset>)",
        aliases=("--metadata", "--meta_dir"),
    )
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    image_meta: Path | None = option(None, "table of images (default: image_paths.json of the metadata folder)")
    prompt_json: Path | None = option(
        None, f"prompts that are the text queries (default: {TOKEN_SAFE_PROMPTS} of the metadata folder)"
    )
    exclude_same_camera: bool | None = option(
        None, "leave the query's own camera out of its gallery (default: as the dataset's protocol says)"
    )
    results_dir: Path = option(RESULTS_DIR, "where metrics, rankings, figures and summary.csv go")
    batch_size: int | None = option(None, "images at a time (default: 128, on a CPU 32)", at_least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the bootstrap intervals and of the first centers of k-means", at_least=0)
    unrelated_ids: bool = option(
        False, "item ids equal to ones that the weights were trained on in another dataset stand for other things"
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    fast_decode: bool = option(False, "decode JPEGs at reduced size: faster, differs by under 1 grey level on average")
    verify: bool = option(False, "compare all checksums of the decoded photos at the start, not some of them")
    probe: Path | None = option(
        None,
        "folder of other photos, a folder a class, called as the class is: how many are classified rightly by these "
        "names, before and after fine-tuning (default: ImageNet's classes, of small-clip alone)",
    )
    clustering: bool = option(True, "measure NMI and ARI of k-means on the test images too, and draw a map of them")
    saliency: bool = option(True, "draw what of a few queries makes them similar to their match (147 photos to encode)")
    projector: bool = option(False, "write the test photos' features with small photos for TensorBoard's projector")
    rerank: str = option(
        "none",
        "measure the official split once more, in rows of its own: re-ranked by k_reciprocal or aqe (alpha query "
        "expansion), or text_fusion: with a query's description beside its photo",
        choices=("none", *(method.method for method in _PARAMETERS)),
    )
    rerank_k1: int | None = option(
        None, f"k_reciprocal: neighbours of a photo (default: {KReciprocal.k1})", at_least=1, at_most=MAX_K
    )
    rerank_k2: int | None = option(
        None,
        f"k_reciprocal: nearest photos that a vector is averaged over, at most k1 (default: {KReciprocal.k2})",
        at_least=1,
        at_most=MAX_K,
    )
    rerank_lambda: float | None = option(
        None, f"k_reciprocal: weight of the original distance (default: {KReciprocal.weight})", at_least=0, at_most=1
    )
    aqe_n: int | None = option(
        None,
        f"aqe: gallery photos that a query is expanded by (default: {QueryExpansion.n})",
        at_least=1,
        at_most=MAX_EXPANSION,
    )
    aqe_alpha: float | None = option(
        None,
        f"aqe: power of their similarities; 0: all alike (default: {QueryExpansion.alpha})",
        at_least=0,
        at_most=MAX_ALPHA,
    )
    text_weight: float | None = option(
        None,
        f"text_fusion: weight of the description, the photo having the rest (default: {TextFusion.weight})",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        _ = self.reranking  # its flags must fit together, before the work

    @property
    def reranking(self) -> Reranking | TextFusion | None:
        """The method of the re-ranked figures; None: there are none.

        Raises:
            InputError: an impossible parameter of it, or one of another method.
        """
        chosen = None
        for method, names in _PARAMETERS.items():
            given = {flag: getattr(self, flag) for flag in names if getattr(self, flag) is not None}
            if self.rerank == method.method:
                chosen = method(**{names[flag]: value for flag, value in given.items()})
            elif given:
                raise InputError(f"--{min(given)} is for --rerank {method.method}, and --rerank is {self.rerank}")
        return chosen


@dataclass(frozen=True)
class CheckpointConfig(EvaluationConfig):
    """The flags of an evaluation of a checkpoint."""

    ckpt: Path | None = option(None, "the checkpoint (default: the newest BEST of this stage on this dataset)")
    resize_mode: str | None = option(None, "in place of the checkpoint's own", choices=RESIZE_MODES)
    model: str | None = option(
        None, "architecture that the checkpoint must be of (default: whatever it is)", aliases=("--model_arch",)
    )


@dataclass(frozen=True)
class EvaluationLabels:
    """What the rows in `results/summary.csv` say of an evaluation, besides its figures.

    Attributes:
        stage, variant, checkpoint: what is measured.
        seed, recipe: of the training that made it, see `clipfh.training.recipe`; None and empty without one.
        start_recipe: of the training whose weights that one started from; empty where these were pretrained ones, None
            where it is not known.
        interpolation: {share of the fine-tuned weights: val figure} by which they were chosen, for the report.
    """

    stage: int
    variant: str
    checkpoint: str
    seed: int | None = None
    recipe: str = ""
    start_recipe: str | None = None
    interpolation: dict[float, float] = field(default_factory=dict)

    @property
    def stage_name(self) -> str:
        """Such as stage1 or stage3_v4."""
        return f"stage{self.stage}" + (f"_{self.variant}" if self.variant else "")
