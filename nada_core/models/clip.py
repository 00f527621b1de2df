"""CLIP as a frozen guide, and the directions it gives (StyleGAN-NADA, arXiv:2108.00946, section 4.1, equation 3).

A guide turns images and phrases into unit vectors of one space. A shift says which way to go in that space: from one
phrase to another, or from the generator's images to a few style images. Shifts travel as data; only `direction` and
`target` run a network, once before the first step.

Weights come through open_clip whoever made them: the guide that ships with the pack is loaded by the same lines as a
local file of ViT-B/32. Nothing is ever downloaded unless the caller names a published tag.

Shapes: N images or phrases, D embedding, M source images, K templates, V vocabulary.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..io.checkpoint_file import BUILTIN
from ..runtime.precision import no_autocast, tf32


class GuideError(ValueError):
    """A guide could not be loaded; the message names the file or name to give instead."""


class ClipGuide(nn.Module):
    """A frozen image-text encoder in float32. Attributes: name, size (height, width), dim, antialias.

    Embeddings of images are differentiable with respect to the images; the weights never receive gradients.
    Differences of nearly equal unit vectors drown in half precision, so autocast and TF32 are switched off inside.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], dim: int, antialias: bool = True
    ) -> None:
        """`model` and `tokenizer` are open_clip's; the model is frozen and owned by the guide from here on."""
        super().__init__()
        visual: Any = model.visual
        size = visual.image_size
        self.name = name
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.dim = dim
        self.antialias = antialias
        self.model = model.float().requires_grad_(False)
        if isinstance(model.visual, nn.Module):  # convolutions of guides are quicker in this layout, there and back
            visual.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(1, 3, 1, 1), persistent=False)
        self._tokenizer: Any = tokenizer
        text: Any = getattr(model, "text", model)
        table = getattr(text, "token_embedding", None)
        self._unseen = table.weight.eq(0).all(dim=1).cpu() if table is not None else None  # [V]
        self.eval()
        if type(visual).__name__ == "ModifiedResNet":  # open_clip's, where a norm follows its convolution
            _ = self.fingerprint  # it is of the weights as they came
            _fold_norms(visual)
        _put_sequence_first(visual)

    def train(self, mode: bool = True) -> ClipGuide:
        """A guide stays in evaluation mode whatever it is asked: dropout would make the direction wander."""
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any weight and with the preprocessing."""
        digest = hashlib.sha256(repr((self.size, self.antialias, self.mean.tolist(), self.std.tolist())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def prepare(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in -1..1 -> [N, 3, h, w] as the model wants it, h and w from `size`.

        Bicubic resize until the image covers the model's size, centre crop, the model's own mean and deviation.
        Without antialiasing the gradient can hide in frequencies the eye reads as noise; the first implementation had
        none, so it can be switched off. Values beyond -1..1 are not clamped: that would silence their gradient.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not len(x):
            raise ValueError(f"Got images of shape {list(x.shape)}, expected [N, 3, H, W] with at least one image.")
        x = (x.float() + 1) / 2
        (height, width), (h, w) = x.shape[-2:], self.size
        # The side that is short compared with the model's fits exactly, the other one is cropped.
        covering = (h, max(w, width * h // height)) if height * w <= width * h else (max(h, height * w // width), w)
        if covering != (height, width):
            x = F.interpolate(x, covering, mode="bicubic", antialias=self.antialias, align_corners=False)
        top, left = (covering[0] - h) // 2, (covering[1] - w) // 2
        return (x[..., top : top + h, left : left + w] - self.mean) / self.std

    def encode_images(self, x: Tensor) -> Tensor:
        """Unit vectors [N, D] of images [N, 3, H, W] in -1..1, any size; differentiable."""
        with no_autocast(x.device), tf32(False):
            model: Any = self.model
            return F.normalize(model.encode_image(self.prepare(x)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] of phrases.

        Raises:
            ValueError: for no phrases, for words this guide has never seen, and for phrases it would cut short.
        """
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if not phrases:
            raise ValueError("Got no phrases, expected at least one.")
        self._refuse_unreadable(phrases)
        device = self.mean.device
        with no_autocast(device), tf32(False):
            model: Any = self.model
            return F.normalize(model.encode_text(self._tokenizer(phrases).to(device)).float(), dim=-1)

    def _refuse_unreadable(self, phrases: Sequence[str]) -> None:
        encode = getattr(self._tokenizer, "encode", None)
        if encode is None:  # a tokenizer of another make, for which the questions below cannot be asked
            return
        room = self._tokenizer.context_length - 2  # start and end take one place each
        unseen: dict[str, None] = {}  # an ordered set
        for phrase in phrases:
            tokens = encode(phrase)
            if len(tokens) > room:
                raise ValueError(f"{phrase!r} is {len(tokens)} tokens long, {self.name} reads {room}. Shorten it.")
            if self._knows(tokens):
                continue
            words = [word for word in re.findall(r"\w+|[^\w\s]+", phrase) if not self._knows(encode(word))]
            unseen.update(dict.fromkeys(words or [phrase]))
        if unseen:
            raise ValueError(
                f"The guide {self.name} has never seen {', '.join(map(repr, unseen))}. Guides that ship with the pack "
                "know a small vocabulary; use other words or templates, or load a full guide such as ViT-B-32:openai."
            )

    def _knows(self, tokens: Sequence[int]) -> bool:
        """Rows of the token table that no caption ever used are zero in guides with a small vocabulary."""
        return self._unseen is None or not any(self._unseen[token] for token in tokens)


def _fold_norms(visual: nn.Module) -> None:
    """Batch norms at rest are a factor and an offset a channel: write them into the convolutions before them, which
    spares a pass over memory each, there and back. Between unit vectors this is rounding."""
    for parent in visual.modules():
        children = list(parent.named_children())
        for (name, conv), (after, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                setattr(parent, after, nn.Identity())


def _put_sequence_first(visual: object) -> None:
    """open_clip holds a batch of sequences; torch's attention wants a sequence of batches and multiplies in pieces what
    is only turned for it. Turned for good before the first block, the numbers are the same."""
    transformer: Any = getattr(visual, "transformer", None)
    attentions = [getattr(block, "attn", None) for block in getattr(transformer, "resblocks", ())]
    if type(transformer).__name__ == "Transformer" and all(type(a) is nn.MultiheadAttention for a in attentions):
        for layout in (transformer, *attentions):
            layout.batch_first = False


def built_in_guides() -> dict[str, Path]:
    """The guides that ship with the pack, name to open_clip config: guide.json is "portraits", guide-x.json
    "portraits-x". The weights lie beside the config as .safetensors. "portraits" comes first.
    """
    paths = sorted(BUILTIN.glob("guide*.json"), key=lambda path: path.stem)  # with .json "guide-x" would come first
    return {"portraits" + path.stem.removeprefix("guide"): path for path in paths}


def load_guide(
    name_or_path: str | os.PathLike[str],
    architecture: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | None = None,
    antialias: bool = True,
) -> ClipGuide:
    """Load a frozen CLIP.

    name_or_path: a built-in name ("portraits"); "architecture:tag" of published weights ("ViT-B-32:openai", downloaded
        into cache_dir on first use, with a progress bar); or a local weights file, as "architecture:path" or as a path
        with `architecture`. Local files of OpenAI's own weights need the "-quickgelu" architectures.
    architecture: an open_clip model name, or the path of an open_clip model config (.json).
    antialias: see `ClipGuide.prepare`.

    Raises:
        GuideError: for names nothing is known by (near matches are listed), for files that are missing, that belong
            to another architecture or that hold more than tensors, and when a download fails.
    """
    try:
        import open_clip
    except ImportError as error:
        raise GuideError(
            f"The Python package {error.name} is missing; install what requirements.txt lists into the "
            "Python that runs this, then start anew."
        ) from error

    wanted = os.fspath(name_or_path)
    model_name, weights = _resolve(wanted, None if architecture is None else os.fspath(architecture))
    published = open_clip.get_pretrained_cfg(model_name, weights)
    config = open_clip.get_model_config(model_name)
    hub = logging.getLogger("huggingface_hub")
    loudness = hub.level
    try:
        hub.setLevel(logging.CRITICAL)  # it tells of every retry; what came of them is told below, once
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read; the caller's numbers stay
            model = open_clip.create_model(
                model_name,
                pretrained=weights,
                precision="fp32",
                device="cpu",
                # The tag knows its activation and colours better than the architecture does; open_clip only warns.
                force_quick_gelu=bool(published.get("quick_gelu", False)),
                force_preprocess_cfg=None if published else _colours(model_name),
                cache_dir=cache_dir,
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(model_name, cache_dir=cache_dir)
    except ImportError as error:
        raise GuideError(f"{model_name} needs the Python package {error.name}, which is not installed.") from error
    except Exception as error:  # whatever the library, the network or the file did, the person gets one kind of answer
        if published:
            raise GuideError(_download_failed(model_name, published, error)) from error
        raise GuideError(_file_failed(model_name, weights, error)) from error
    finally:
        hub.setLevel(loudness)
    name = wanted if wanted in built_in_guides() else f"{model_name}:{weights if published else Path(weights).name}"
    return ClipGuide(name, model, tokenizer, config["embed_dim"], antialias).to(device)


def _resolve(wanted: str, architecture: str | None) -> tuple[str, str]:
    """What the caller wrote -> (a model name open_clip knows, a published tag of it or the path of a file)."""
    import open_clip

    built_in = built_in_guides()
    if architecture is None and wanted in built_in:
        path = built_in[wanted]
        architecture, weights = str(path), str(path.with_suffix(".safetensors"))
    elif architecture is None:
        # Windows paths hold colons too ("C:\\x"), so what stands before the first one must be an architecture.
        before, _, weights = wanted.partition(":")
        if not weights or not (before.endswith(".json") or before in open_clip.list_models()):
            raise GuideError(_unknown(wanted, built_in))
        architecture = before
    else:
        weights = wanted
    if architecture.endswith(".json"):
        architecture = _register(Path(architecture))
    elif architecture not in open_clip.list_models():
        near = _near(architecture, open_clip.list_models())
        raise GuideError(f"open_clip knows no architecture {architecture!r}.{near} A config file (.json) will do too.")
    if not open_clip.is_pretrained_cfg(architecture, weights) and not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise GuideError(
            f"{weights!r} is neither a file nor a published tag of {architecture}.{_near(weights, tags)} "
            f"Check the path, or use one of the tags: {', '.join(tags) or 'none are published'}."
        )
    return architecture, weights


def _register(path: Path) -> str:
    """Tell open_clip of a model config file; its name there is the file's stem."""
    import open_clip

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuideError(f"The model config {path} could not be read ({error}). Check the path.") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    if missing:
        raise GuideError(f"{path} lacks {', '.join(sorted(missing))}; expected an open_clip model config.")
    if open_clip.get_model_config(path.stem) != config:  # the registry is global, so add once
        if Path(open_clip.__file__).with_name("model_configs").joinpath(path.name).is_file():
            raise GuideError(
                f"open_clip has a {path.stem} of its own, which others count on. Give {path} and its "
                "weights another name."
            )
        open_clip.add_model_config(path)
    return path.stem


def _colours(architecture: str) -> dict[str, Any] | None:
    """Mean and deviation for a local file: what all published weights of its architecture agree on, if they do."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    told = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    agreed = {(tuple(c["mean"]), tuple(c["std"])) for c in told if c.get("mean") and c.get("std")}
    return dict(zip(("mean", "std"), agreed.pop(), strict=True)) if len(agreed) == 1 else None


def _unknown(wanted: str, built_in: dict[str, Path]) -> str:
    import open_clip

    if Path(wanted).is_file():
        return f"{wanted} needs its architecture: load_guide(path, architecture='ViT-B-32'), or 'ViT-B-32:{wanted}'."
    known = [*built_in, *open_clip.list_pretrained(as_str=True)]
    return (
        f"There is no guide {wanted!r}.{_near(wanted, known)} Give a built-in name ({', '.join(built_in) or 'none'}), "
        "an 'architecture:tag' such as ViT-B-32:openai, or 'architecture:path' of a weights file."
    )


def _near(wanted: str, known: Sequence[str]) -> str:
    folded = {name.lower(): name for name in known}
    close = [folded[name] for name in difflib.get_close_matches(wanted.lower(), folded, 3, 0.5)]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _download_failed(architecture: str, published: dict[str, Any], error: Exception) -> str:
    import open_clip

    local = f"{architecture}-quickgelu"
    local = local if published.get("quick_gelu") and local in open_clip.list_models() else architecture
    where = published.get("hf_hub", "").strip("/")
    what = f"open_clip_model.safetensors of {where} (Hugging Face hub)" if where else published.get("url", "the file")
    return (
        f"The weights of {architecture} could not be downloaded ({_first_line(error)}). Without a network, fetch "
        f"{what} elsewhere, place it in your models folder and load '{local}:/path/to/that/file'."
    )


def _file_failed(architecture: str, weights: str, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{weights} holds more than tensors and was not opened ({_first_line(error)}). "
            "Convert it to .safetensors on a machine where you trust it."
        )
    if "TorchScript" in str(error):
        return f"{weights} is a TorchScript archive, which is code. Use the .safetensors release of the same weights."
    return (
        f"{weights} does not hold weights of {architecture} ({_first_line(error)}). "
        "Name the architecture the file was made for; open_clip.list_models() lists them."
    )


def _first_line(error: Exception, most: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
