"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") through the library peft.

Beside a weight W (out, in), which is held, learn two narrow matrices: A (rank, in), drawn at random, and B (out, rank),
0 at first. The layer computes with W + SCALING * B @ A. What comes of a training is a plain CLIP with merged weights.
"""

import copy
import re
from collections.abc import Callable
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipfh.models.torchvision_guard  # noqa: F401  (before peft, which imports transformers)
from clipfh.core.errors import InputError
from clipfh.models.image_layers import is_adapter, layers_of
from clipfh.models.text_layers import follows_text_blocks, is_in_text_block

# peft's lora_alpha / rank. AdamW's steps do not depend on the scale of gradients, so that the learning rate alone says
# how far adapters move; one scaling for all ranks keeps a rate that was found for one of them.
SCALING = 2.0
HOW_TO_GET = "install it with: bash set_up.sh parts lora, or pip install -e '.[lora]'"
_NAME = "default"  # peft's, of the only adapter of a layer


def with_lora(model: nn.Module, rank: int) -> tuple[nn.Module, Callable[[], None]]:
    """A twin of a CLIP that learns by adapters, and the function that merges them into the CLIP.

    Adapters come to what would learn without them: to every linear layer, 1x1 convolution and attention projection in
    the blocks of either encoder whose weight takes gradients when this is called. Blocks that are held, and a text
    encoder that is frozen, get none. In the twin learn
    - in the blocks the adapters, and nothing else: weights, biases, norms and their statistics are held, and so is
      what stands before the blocks (stem, embeddings);
    - what follows the blocks (norm, pooling, projection), and the temperature, as without adapters.

    `model` stays a plain CLIP. What is not adapted is shared: the same tensors in both, so that what follows the blocks
    learns in both. Adapted weights are its own: `merge()` sets them to W + SCALING * B @ A, in place. Until then, and
    as long as B is 0, they are those that it came with. `requires_grad` of its own weights stays as it is.

    Args:
        model: of open_clip, on its device; `requires_grad` says what would learn.
        rank: of the adapters.

    Returns:
        The twin, and `merge`.

    Raises:
        InputError: peft is missing, no layer of the blocks can be adapted, or one is smaller than `rank`.
    """
    weights = adaptable_weights(model)
    if not weights:
        raise InputError(
            f"--lora_rank {rank}: no block of the encoders that learn has a linear layer or 1x1 convolution to adapt "
            "(--freeze_until and --freeze_text_blocks hold them, stage 2 the text encoder); --lora_rank 0 trains "
            "without adapters"
        )
    smallest = min(weights, key=lambda name: min(weights[name].shape[:2]))
    out_features, in_features = weights[smallest].shape[:2]
    if rank > min(out_features, in_features):
        raise InputError(
            f"--lora_rank {rank}: {smallest} has {in_features} inputs and {out_features} outputs; take at most "
            f"{min(out_features, in_features)}"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds: only where it is needed
    except ImportError:
        raise InputError(f"--lora_rank needs the package peft; {HOW_TO_GET}") from None

    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin = _twin(model, {id(weight) for weight in weights.values()})
    _with_linear_attention(twin, weights)
    exactly = "|".join(map(re.escape, weights))  # a list of names would be taken as their ends
    config = LoraConfig(r=rank, lora_alpha=round(SCALING * rank), target_modules=exactly)
    inject_adapter_in_model(config, twin, _NAME)
    behind = _behind_the_blocks(twin)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(is_adapter(name) or (name in learning and name in behind))
    layers = [twin.get_submodule(name) for name in weights]

    @torch.no_grad()
    def merge() -> None:
        for layer, weight in zip(layers, weights.values(), strict=True):
            weight.copy_(layer.get_base_layer().weight + layer.get_delta_weight(_NAME))

    return twin, merge


def adaptable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a CLIP that adapters can stand beside: in a block, learning, and a matrix or 1x1 convolution.

    Returns:
        {name of the layer: (out, in) or (out, in, 1, 1)}; an attention's `in_proj_weight` is that of a layer `in_proj`.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{name}.in_proj"] = module.in_proj_weight
        elif isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            found[name] = module.weight
    in_blocks = {id(parameter) for parameter in _block_parameters(model)}
    return {name: weight for name, weight in found.items() if weight.requires_grad and id(weight) in in_blocks}


def learning_line(model: nn.Module) -> str:
    """How much of a twin learns, for the log."""
    of_adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))
    layers = sum(".lora_A." in name for name, _ in model.named_parameters())
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return (
        f"LoRA beside {layers} layers: {learning:,} parameters learn, {of_adapters:,} of them in adapters; {held:,} "
        "are held"
    )


class SelfAttention(nn.Module):
    """An `nn.MultiheadAttention` of open_clip's blocks with its projections as linear layers, which peft adapts.

    peft has a class for `nn.MultiheadAttention` itself. Before each forward pass it adds the adapters to the weights,
    and subtracts them after it, so that held weights drift by rounding; and those of `out_proj` it adds twice.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = attention.num_heads, attention.batch_first, attention.dropout
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Tokens (B, L, E), or (L, B, E) without `batch_first`, to the same.

        `attn_mask`, (L, L) or (B * heads, L, L), is added to the logits.
        """
        assert query is key is value and not need_weights  # as the blocks call it
        x = query if self.batch_first else query.transpose(0, 1)
        B, L, E = x.shape
        projected = self.in_proj(x).reshape(B, L, 3, self.num_heads, -1)
        q, k, v = projected.permute(2, 0, 3, 1, 4)  # each (B, heads, L, E / heads)
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
            attn_mask = attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(B, self.num_heads, L, L)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
        x = self.out_proj(x.transpose(1, 2).reshape(B, L, E))
        return (x if self.batch_first else x.transpose(0, 1)), None


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer of parameters that are there."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def _twin(model: nn.Module, own: set[int]) -> nn.Module:
    """A copy that shares all parameters and buffers but those whose `id` is in `own`."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def _with_linear_attention(model: nn.Module, names: dict[str, nn.Parameter]) -> None:
    """Let each attention whose layers are among `names` call them, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and f"{name}.in_proj" in names:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, SelfAttention(module))
        elif hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # or timm's EVA reads the weight of its layer, and does not call it


def _block_parameters(model: nn.Module) -> list[nn.Parameter]:
    layers = layers_of(model.visual)
    last = max(layers.values())
    image = [parameter for name, parameter in model.visual.named_parameters() if 0 < layers[name] < last]
    return [*image, *(parameter for name, parameter in model.named_parameters() if is_in_text_block(name))]


def _behind_the_blocks(model: nn.Module) -> set[str]:
    """The names of the parameters that follow the blocks of their encoder, and of the temperature."""
    layers = layers_of(model.visual)
    last = max(layers.values())
    image = {f"visual.{name}" for name, layer in layers.items() if layer == last}
    text = {name for name, _ in model.named_parameters() if follows_text_blocks(name)}
    return image | text | {"logit_scale", "logit_bias"}
