"""The variants of stage 3, in one place. A flag on the command line overrides its value here."""

from typing import Any

# What each variant changes is what it teaches; the values are the same for every dataset.
PRESETS: dict[str, dict[str, Any]] = {
    # Random batches and raw prompts: two photos of one identity may meet, and long prompts are cut at 77 tokens.
    "v1": {"loss": "infonce", "batches": "random", "prompts": "raw", "schedule": "constant", "temperature": 0.07},
    # P x K batches with all same-identity pairs as positives.
    "v2": {"loss": "supcon", "batches": "pk", "prompts": "filtered", "schedule": "constant", "temperature": 0.1},
    # v2 continued from its BEST, its learned temperature too, with a three times higher learning rate.
    "v3": {
        "loss": "supcon",
        "batches": "pk",
        "prompts": "filtered",
        "schedule": "constant",
        "lr_factor": 3.0,
        "init_ckpt": "v2",
    },
    # Prompts that fit the context, warm-up then cosine, early stopping.
    "v4": {
        "loss": "supcon",
        "batches": "pk",
        "prompts": "token_safe",
        "schedule": "cosine",
        "temperature": 0.1,
        "patience": 10,
    },
}

DEFAULTS: dict[str, Any] = {"lr_factor": 1.0, "patience": 0, "init_ckpt": ""}


def preset(variant: str) -> dict[str, Any]:
    """All values of a variant."""
    return {**DEFAULTS, **PRESETS[variant]}
