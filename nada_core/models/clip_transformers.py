"""CLIP models with the tensor names of Hugging Face transformers, such as ComfyUI's CLIP Vision, as guides.

The architecture is that of OpenAI (arXiv:2103.00020, section 2.4). transformers and open_clip name and arrange the same
weights differently; `to_open_clip` converts, `guide_from_vision_tower` makes a guide of an image tower alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..io.checkpoint_file import RawCheckpoint
from .clip import ClipGuide, GuideError, ImageTower

#: Entries of OpenAI's state dicts that are sizes, not weights.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")

#: Preprocessing of OpenAI's CLIP, by transformers' names.
_NORMALIZATION = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}

#: Widths of ViT-H, g and bigG, which have 16 heads. The heads of other published towers are 64 wide.
_SIXTEEN_HEADS = (1280, 1408, 1664)

_MODEL_TYPE = "clip_vision_model"  # of transformers
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PROJECTIONS = tuple(f"self_attn.{part}_proj" for part in "qkv")
_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # transformers' spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}

#: Parts of tensor names of other image encoders.
_OTHER_FAMILIES = {
    "vision_model.embeddings.patch_embedding.bias": "SigLIP",
    "layer_scale1.lambda1": "DINOv2",
    "attention.o_proj.": "DINOv3",
}
_INSTEAD = {"SigLIP": "Load a SigLIP model of open_clip by its name, such as ViT-B-16-SigLIP:webli."}


def is_transformers_layout(names: Iterable[str]) -> bool:
    """Whether tensors have the names of transformers' CLIP, whole or one tower."""
    return any(name.startswith(("vision_model.encoder.", "text_model.encoder.")) for name in names)


def clip_tensors(raw: RawCheckpoint) -> dict[str, Tensor]:
    """Return the tensors of a file by open_clip's names, without prefixes of training programs and OpenAI's sizes.

    Raises:
        GuideError: as `to_open_clip`.
    """
    state = {name.removeprefix("state_dict.").removeprefix("module."): value for name, value in raw.tensors.items()}
    if is_transformers_layout(state):
        state = to_open_clip(state)
    return {name: value for name, value in state.items() if name not in _OPENAI_SIZES}


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the names and shapes of transformers' CLIP to those of open_clip; tensors are copied where they change.

    Raises:
        GuideError: the tensors belong to another family, or to a text tower without its projection.
    """
    if other := other_family(state):
        raise GuideError(_wrong_family(other))
    has_text = any(name.startswith("text_model.") for name in state)
    if has_text and "text_projection.weight" not in state:
        raise GuideError(
            "Got a text tower without text_projection.weight, expected it: without it, texts are not embedded in the "
            "space of the images. Use the file of the whole CLIP model, or its image tower alone."
        )
    result = {name: state[old] for old, name in _NAMES.items() if old in state}
    for old, name in _TRANSPOSED.items():
        if old in state:
            _check_shape(old, state[old], state[old].ndim == 2)
            result[name] = state[old].T.contiguous()
    for name, value in state.items():
        if not (match := _BLOCK.fullmatch(name)):
            continue
        tower, index, part, kind = match.groups()
        place = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{index}."
        if part in _BLOCK_NAMES:
            result[f"{place}{_BLOCK_NAMES[part]}.{kind}"] = value
        elif part == _PROJECTIONS[0]:
            projections = [name.replace(part, one) for one in _PROJECTIONS]
            if absent := [one for one in projections if one not in state]:
                raise GuideError(f"Got no {absent[0]}, expected it beside {name}. The file is incomplete.")
            parts = [state[one] for one in projections]
            _check_shape(name, value, value.ndim > 0 and all(one.shape == value.shape for one in parts))
            result[f"{place}attn.in_proj_{kind}"] = torch.cat(parts)
    return result


def _check_shape(name: str, value: Tensor, fits: bool) -> None:
    if not fits:
        raise GuideError(f"Got {name} of shape {list(value.shape)}, which does not fit a CLIP model. Use another file.")


def other_family(names: Iterable[str]) -> str | None:
    """Return the family of an image encoder that is no CLIP model, or None."""
    names = list(names)
    return next((kind for part, kind in _OTHER_FAMILIES.items() if any(part in name for name in names)), None)


def _wrong_family(family: str) -> str:
    instead = _INSTEAD.get(family, "Use an image tower of CLIP, such as ViT-L/14, ViT-H/14 or ViT-bigG/14.")
    return f"Got a {family} model, expected CLIP. {instead}"


def guide_from_vision_tower(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    antialias: bool = True,
) -> ClipGuide:
    """Make a guide from the weights of a CLIP image tower. It embeds images, not texts.

    Args:
        state: tensors with the names of transformers' CLIP or open_clip's, on any device and in any precision; they are
            copied. Text towers are ignored. Without a projection, embeddings are the tower's own features.
        config: a config of transformers (num_attention_heads, hidden_act, image_mean, image_std); entries that it lacks
            are those of published models with the same sizes.
        name: of the guide; None: its sizes.
        antialias: see `ClipGuide.prepare`.

    Raises:
        GuideError: the tensors belong to another family, or are incomplete.
    """
    config = config or {}
    kind = config.get("model_type", _MODEL_TYPE)
    if family := other_family(state) or (kind if kind != _MODEL_TYPE else None):
        raise GuideError(_wrong_family(family))
    if is_transformers_layout(state):
        # The tower of LLaVA has no projection; ComfyUI 0.20 adds one that nothing has set.
        ignored = ("visual_", "text_") if any(key.startswith("multi_modal_projector.") for key in state) else ("text_",)
        state = to_open_clip({key: value for key, value in state.items() if not key.startswith(ignored)})
    size = vision_size(state)
    usual_heads = 16 if size["width"] in _SIXTEEN_HEADS else max(size["width"] // 64, 1)
    heads = config.get("num_attention_heads") or usual_heads
    activation = config.get("hidden_act") or ("quick_gelu" if size["dim"] in (512, 768) else "gelu")
    visual = _build(_image_tower(state), size, heads, activation)
    visual.image_mean, visual.image_std = (tuple(config.get(key) or own) for key, own in _NORMALIZATION.items())
    title = name or f"CLIP Vision {size['width']} x {size['layers']}, patch {size['patch_size']}"
    return ClipGuide(title, ImageTower(visual), None, size["dim"], antialias)


def _image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


def vision_size(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return width, layers, patch_size, image_size and dim of an image tower.

    Args:
        state: tensors with open_clip's names; the image tower has the prefix "visual.".

    Raises:
        GuideError: a tensor is missing, or has another shape than in a Vision Transformer of CLIP.
    """
    tower = _image_tower(state)
    needed = ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_post.weight")
    if absent := [name for name in needed if name not in tower]:
        raise GuideError(f"Got no {absent[0]}, expected the image tower of a Vision Transformer of CLIP.")
    kernel, positions = tower["conv1.weight"], tower["positional_embedding"]
    _check_shape("conv1.weight", kernel, kernel.ndim == 4 and kernel.numel() > 0 and kernel.shape[2] == kernel.shape[3])
    side = math.isqrt(max(len(positions) - 1, 0)) if positions.ndim == 2 else 0  # one row is the class token
    _check_shape("positional_embedding", positions, side > 0 and side**2 == len(positions) - 1)
    if "proj" in tower:
        _check_shape("proj", tower["proj"], tower["proj"].ndim == 2)
    return {
        "width": len(kernel),
        "layers": len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")}),
        "patch_size": kernel.shape[-1],
        "image_size": kernel.shape[-1] * side,
        "dim": tower["proj"].shape[-1] if "proj" in tower else len(kernel),
    }


def _build(tower: Mapping[str, Tensor], size: Mapping[str, int], heads: int, activation: str) -> Any:
    """Build open_clip's Vision Transformer around copies of the weights. Uses no random numbers."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    activations = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
    if activation not in activations or heads < 1 or size["width"] % heads:
        raise GuideError(
            f"Got hidden_act {activation!r} and {heads} heads in a width of {size['width']}, expected quick_gelu or "
            "gelu, and a number of heads that divides the width."
        )
    hidden = tower.get("transformer.resblocks.0.mlp.c_fc.bias", torch.empty(0)).numel()
    with torch.device("meta"):
        visual = VisionTransformer(
            size["image_size"],
            size["patch_size"],
            size["width"],
            size["layers"],
            heads,
            (hidden + 0.5) / size["width"],  # rounded down to `hidden`
            output_dim=size["dim"],
            act_layer=activations[activation],
        )
    if "proj" not in tower:
        visual.proj = None
    copies = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in tower.items()}
    try:
        visual.load_state_dict(copies, assign=True)
    except RuntimeError as error:  # missing tensors and other shapes
        raise GuideError(f"The image tower does not fit its own sizes: {' '.join(str(error).split())[:160]}") from error
    return visual
