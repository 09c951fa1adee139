"""How the encoders compute a step, where memory or time are short: the figures stay those of the plain way."""

from dataclasses import dataclass

from torch import nn

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.models.image_layers import follows_batch


@dataclass(frozen=True, kw_only=True)
class Computing:
    """The flags that change what a step costs, and not what it learns."""

    grad_checkpointing: bool = option(
        False, "keep the activations of the blocks' inputs alone, and compute the others again in the backward pass"
    )
    compile: bool = option(
        False, "compile the encoders with torch.compile; needs a C++ compiler, and minutes before the first step"
    )

    def prepare(self, model: nn.Module) -> None:
        """Let the encoders of a CLIP compute so; to be called in train mode with its layers held (`Layers.hold`), and
        before its weights are averaged.

        Raises:
            InputError: an architecture that cannot; or batch norms that learn their statistics would see each batch
                twice.
        """
        if self.grad_checkpointing:
            if follows_batch(model):
                raise InputError(
                    "--grad_checkpointing encodes a batch twice, and batch norms would take it into their statistics "
                    "twice: keep those of the first weights with --hold_statistics, or hold their blocks with "
                    "--freeze_until"
                )
            _checkpoint_blocks(model)
        if self.compile:
            for encoder in (model.visual, getattr(model, "text", None) or getattr(model, "transformer", None)):
                if encoder is not None and any(parameter.requires_grad for parameter in encoder.parameters()):
                    encoder.compile()


def _checkpoint_blocks(model: nn.Module) -> None:
    """Raise an InputError where open_clip would go on without."""
    image = getattr(model.visual, "trunk", model.visual)  # timm's own, which says that it cannot
    try:
        if type(image).__name__ == "ModifiedResNet":
            raise NotImplementedError("open_clip has it for transformers alone")
        image.set_grad_checkpointing(True)
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--grad_checkpointing: a {type(image).__name__} does not know how ({error})") from error
