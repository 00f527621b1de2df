"""Frozen CLIP models as guides (StyleGAN-NADA, arXiv:2108.00946, section 4.1).

Shapes: N images or phrases, D embedding, V vocabulary, H and W pixels of an image, h and w input size of the model.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..runtime.precision import no_autocast, tf32


class GuideError(ValueError):
    """A guide could not be loaded; the message says which file or name to use instead."""


class ImageTower(nn.Module):
    """An image tower of open_clip without a text tower, in the place of a whole model."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, x: Tensor) -> Tensor:
        """Embed prepared images [N, 3, h, w] as [N, D]."""
        embedded: Tensor = self.visual(x)
        return embedded

    def settings(self) -> list[str]:
        """Return what decides the embeddings and is not seen in the weights: heads and activations."""
        heads = {f"{module.num_heads} heads" for module in self.modules() if hasattr(module, "num_heads")}
        return sorted(heads | {type(module).__name__ for module in self.modules() if "GELU" in type(module).__name__})


class ClipGuide(nn.Module):
    """A frozen CLIP model in float32, differentiable with respect to the images.

    Autocast and TF32 are disabled inside: half precision loses differences of nearly equal unit vectors.

    Args:
        model: an open_clip model, or an `ImageTower`, which the guide freezes and modifies.
        tokenizer: the open_clip tokenizer of that model; None for an image tower.
        dim: D.
        antialias: see `prepare`.

    Attributes:
        size: (h, w).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor] | None,
        dim: int,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        visual: Any = model.visual
        size = visual.image_size
        self.name, self.dim, self.antialias = name, dim, antialias
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.model = model.float().requires_grad_(False)
        if isinstance(model.visual, nn.Module):  # faster convolutions, forward and backward
            visual.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(1, 3, 1, 1), persistent=False)
        self._tokenizer: Any = tokenizer
        text: Any = getattr(model, "text", model)
        table = getattr(text, "token_embedding", None)
        self._untrained = table.weight.eq(0).all(dim=1).cpu() if table is not None else None  # [V]
        self.eval()
        if type(visual).__name__ == "ModifiedResNet":  # in this class of open_clip, norms follow their convolutions
            _ = self.fingerprint  # computed from the original weights
            _fold_norms(visual)
        _put_sequence_first(visual)

    def __deepcopy__(self, memo: dict[int, Any]) -> ClipGuide:
        """Copy everything but the tokenizer: it does not change, and its vocabulary takes longer than the weights."""
        memo[id(self._tokenizer)] = self._tokenizer
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def train(self, mode: bool = True) -> ClipGuide:
        """Stay in evaluation mode: dropout would add noise to the direction."""
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the weights and the preprocessing."""
        digest = hashlib.sha256(repr((self.size, self.antialias, self.mean.tolist(), self.std.tolist())).encode())
        if isinstance(self.model, ImageTower):
            digest.update(repr(self.model.settings()).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def prepare(self, x: Tensor) -> Tensor:
        """Resize with bicubic interpolation, crop to the center, and normalize: [N, 3, H, W] in -1..1 to [N, 3, h, w].

        Without antialiasing, gradients can add frequencies that people see as noise. The original implementation had
        none, so it can be disabled. Values outside -1..1 are not clamped, which would zero their gradient.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not len(x):
            raise ValueError(f"Got images of shape {list(x.shape)}, expected [N, 3, H, W] with at least one image.")
        x = (x.float() + 1) / 2
        (height, width), (h, w) = x.shape[-2:], self.size
        # The smallest size that covers the input of the model and keeps the aspect ratio.
        covering = (h, max(w, width * h // height)) if height * w <= width * h else (max(h, height * w // width), w)
        if covering != (height, width):
            x = F.interpolate(x, covering, mode="bicubic", antialias=self.antialias, align_corners=False)
        top, left = (covering[0] - h) // 2, (covering[1] - w) // 2
        return (x[..., top : top + h, left : left + w] - self.mean) / self.std

    def encode_images(self, x: Tensor) -> Tensor:
        """Embed images [N, 3, H, W] in -1..1, of any size, as unit vectors [N, D]."""
        with no_autocast(x.device), tf32(False):
            model: Any = self.model
            return F.normalize(model.encode_image(self.prepare(x)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """Embed phrases as unit vectors [N, D].

        Raises:
            ValueError: the guide has no text tower, there are no phrases, words are outside the vocabulary, or a phrase
                is too long.
        """
        if self._tokenizer is None:
            raise ValueError(
                f"The guide {self.name} has no text tower, so it cannot embed texts. Use a shift from images, from "
                "pairs or from text embeddings, or a guide with a text tower."
            )
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if not phrases:
            raise ValueError("Got no phrases, expected at least one.")
        self._check_readable(phrases)
        device = self.mean.device
        with no_autocast(device), tf32(False):
            model: Any = self.model
            return F.normalize(model.encode_text(self._tokenizer(phrases).to(device)).float(), dim=-1)

    def _check_readable(self, phrases: Sequence[str]) -> None:
        encode = getattr(self._tokenizer, "encode", None)
        if encode is None:  # a Hugging Face tokenizer
            return
        limit = self._tokenizer.context_length - 2  # without the start and end tokens
        unknown: dict[str, None] = {}  # an ordered set
        for phrase in phrases:
            tokens = encode(phrase)
            if len(tokens) > limit:
                raise ValueError(f"{phrase!r} is {len(tokens)} tokens long, {self.name} reads {limit}. Shorten it.")
            if not self._is_trained(tokens):
                words = [word for word in re.findall(r"\w+|[^\w\s]+", phrase) if not self._is_trained(encode(word))]
                unknown.update(dict.fromkeys(words or [phrase]))
        if unknown:
            raise ValueError(
                f"The guide {self.name} has never seen {', '.join(map(repr, unknown))}. It knows few words, such as "
                f"{', '.join(self._known_words())}. Use these, or load a full CLIP model such as ViT-B-32:openai."
            )

    def _known_words(self, count: int = 40) -> list[str]:
        """Return the most specific words of a small vocabulary: the pairs of a tokenizer are ordered by frequency."""
        decoder = getattr(self._tokenizer, "decoder", {})
        texts = [text for token, text in sorted(decoder.items()) if self._is_trained([token])]
        words = [text.removesuffix("</w>") for text in texts if text.endswith("</w>")]
        return sorted([word for word in words if word.isalpha() and len(word) > 2][-count:])

    def _is_trained(self, tokens: Sequence[int]) -> bool:
        """Built-in guides have zero embeddings for tokens outside their vocabulary."""
        return self._untrained is None or not any(self._untrained[token] for token in tokens)


def _fold_norms(visual: nn.Module) -> None:
    """Merge frozen batch norms into the preceding convolutions, which saves a pass over memory each."""
    for parent in visual.modules():
        children = list(parent.named_children())
        for (name, conv), (after, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                setattr(parent, after, nn.Identity())


def _put_sequence_first(visual: object) -> None:
    """Transpose [N, L, D] to [L, N, D] once before the blocks: attention is faster on contiguous input."""
    transformer: Any = getattr(visual, "transformer", None)
    attentions = [getattr(block, "attn", None) for block in getattr(transformer, "resblocks", ())]
    if type(transformer).__name__ == "Transformer" and all(type(a) is nn.MultiheadAttention for a in attentions):
        for module in (transformer, *attentions):
            module.batch_first = False
