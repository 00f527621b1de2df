"""Load CLIP models with open_clip: built-in ones, local files, and published weights.

Nothing is downloaded unless the caller names published weights.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..io.checkpoint_file import BUILTIN, read_checkpoint
from ..io.errors import CheckpointError
from ..io.pickle_machine import check_torch
from .clip import ClipGuide, GuideError, ImageTower
from .clip_config import check_size, hub_config, read_config
from .clip_transformers import clip_tensors
from .file_kinds import describe

#: Prefix of names of models on the Hugging Face hub, and what follows it.
HUB, _REPOSITORY = "hf-hub:", re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def built_in_guides() -> dict[str, Path]:
    """Map the names of the built-in guides to their open_clip configs, "portraits" first.

    guide.json is "portraits", guide-x.json "portraits-x". The weights are next to the config as .safetensors.
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
    """Load a frozen CLIP model.

    Args:
        name_or_path: a built-in name ("portraits"); "architecture:tag" of published weights ("ViT-B-32:openai"), or
            "hf-hub:owner/name" of an open_clip model on the Hugging Face hub, which are downloaded on first use; or a
            local weights file, as "architecture:path", or as a path with `architecture`. Local files of OpenAI's
            weights need the "-quickgelu" architectures.
        architecture: an open_clip model name, or the path of an open_clip model config (.json).
        cache_dir: folder of downloaded weights; None: that of open_clip.
        antialias: see `ClipGuide.prepare`.

    Raises:
        GuideError: the name is unknown (close matches are listed), the file is missing, belongs to another
            architecture or holds more than tensors, or a download failed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise GuideError(
            f"Python package {error.name} is missing; install the packages in requirements.txt."
        ) from error

    requested = os.fspath(name_or_path)
    model_name, weights = _resolve(requested, None if architecture is None else os.fspath(architecture))
    repository = model_name.removeprefix(HUB) if model_name.startswith(HUB) else ""
    # Empty for a local file.
    published = {"hf_hub": repository} if repository else open_clip.get_pretrained_cfg(model_name, weights)
    try:
        if published:  # open_clip reads them with torch.load
            check_torch(requested)
        config = hub_config(repository, cache_dir) if repository else open_clip.get_model_config(model_name)
        model, tokenizer = _create(model_name, weights, published, cache_dir)
    except GuideError:
        raise
    except CheckpointError as error:
        raise GuideError(str(error)) from error
    except ImportError as error:
        raise GuideError(f"{model_name} needs the Python package {error.name}, which is not installed.") from error
    except Exception as error:  # open_clip and the network raise many types
        built = f"The model {model_name} could not be built ({_first_line(error)}). Check its config."
        raise GuideError(_download_failed(model_name, published, error) if published else built) from error
    as_requested = repository or requested in built_in_guides()
    name = requested if as_requested else f"{model_name}:{weights if published else Path(weights).name}"
    return ClipGuide(name, model, tokenizer, config["embed_dim"], antialias).to(device)


def _create(
    model_name: str, weights: str, published: Mapping[str, Any], cache_dir: str | None
) -> tuple[nn.Module, Callable[[list[str]], Tensor] | None]:
    """Return the model and tokenizer of open_clip. Leaves the global random state unchanged.

    A file without a text tower gives an `ImageTower` and no tokenizer.
    """
    import open_clip

    with _quiet_logging(), torch.random.fork_rng(devices=[]):
        state = {} if published else _read_file(Path(weights))
        if not published and not _is_listed(model_name):
            check_size(model_name, Path(weights))
        model = open_clip.create_model(
            model_name,
            pretrained=weights if published else None,
            precision="fp32",
            device="cpu",
            # Weights may need another activation and normalization than their architecture; open_clip only warns.
            force_quick_gelu=bool(published.get("quick_gelu", False)),
            force_preprocess_cfg=None if published else _normalization(model_name),
            cache_dir=cache_dir,
            require_pretrained=bool(published),
            weights_only=True,
        )
        if not published:
            image_only = all(name.startswith(("visual.", "logit_")) for name in state)
            if image_only:
                state |= {name: value for name, value in model.state_dict().items() if not name.startswith("visual.")}
            _load_state(model, model_name, Path(weights), state)
            if image_only:
                return ImageTower(model.visual), None
        return model, _tokenizer(model_name, cache_dir)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Hide the retries of downloads, and open_clip's warning about models whose weights are loaded afterwards."""

    def is_relevant(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    level = hub.level
    root.addFilter(is_relevant)
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.removeFilter(is_relevant)
        hub.setLevel(level)


def _read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a local file, which must be a CLIP model."""
    try:
        raw = read_checkpoint(path)
    except CheckpointError as error:
        raise GuideError(str(error)) from error
    try:
        state = clip_tensors(raw)
    except GuideError as error:
        raise GuideError(f"{path}: {error}") from error
    if not any(name.startswith("visual.") for name in state):
        raise GuideError(f"{path} is no CLIP model; it looks like {describe(raw, 'as a guide')}.")
    return state


def _load_state(model: nn.Module, model_name: str, path: Path, state: dict[str, Tensor]) -> None:
    """Load the tensors of a local file into the model of open_clip; they must be exactly those of this architecture."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    try:
        state = convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for name in ("logit_scale", "logit_bias"):  # scalars in some files, vectors of one number in others
            if name in state and isinstance(own := getattr(model, name, None), Tensor):
                state[name] = state[name].reshape(own.shape)
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
        model.load_state_dict(state)
    except Exception as error:  # the conversions assume shapes and raise anything on others
        raise GuideError(
            f"{path} does not hold weights of {model_name} ({_first_line(error)}). Use the architecture of the file."
        ) from error


def _tokenizer(model_name: str, cache_dir: str | None) -> Callable[[list[str]], Tensor]:
    import open_clip

    try:
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(model_name, cache_dir=cache_dir)
        return tokenizer
    except ImportError:
        raise
    except Exception as error:
        raise GuideError(
            f"The tokenizer of {model_name} could not be loaded ({_first_line(error)}); the weights were. Connect to "
            "the network once, or use an architecture with open_clip's own tokenizer, such as ViT-B-32."
        ) from error


def _resolve(requested: str, architecture: str | None) -> tuple[str, str]:
    """Return an open_clip model name, and a published tag of it or the path of a file."""
    import open_clip

    built_in = built_in_guides()
    weights = requested
    if architecture is None and requested.startswith(HUB):
        if not _REPOSITORY.fullmatch(requested.removeprefix(HUB)):
            raise GuideError(f"Got {requested!r}, expected hf-hub:OWNER/NAME, such as hf-hub:timm/ViT-B-16-SigLIP.")
        return requested, ""
    if architecture is None and requested in built_in:
        path = built_in[requested]
        architecture, weights = str(path), str(path.with_suffix(".safetensors"))
    elif architecture is None:
        # Windows paths have colons too ("C:\\x"), so the part before must be an architecture or a config file.
        architecture, config, weights = requested.partition(".json:")
        if config:
            architecture += ".json"
        else:
            architecture, _, weights = requested.partition(":")
        if not weights or not (architecture.endswith(".json") or architecture in open_clip.list_models()):
            raise GuideError(_unknown(requested, built_in))
    if architecture.endswith(".json"):
        architecture = _register(Path(architecture))
    elif architecture not in open_clip.list_models():
        close = _close_matches(architecture, open_clip.list_models())
        raise GuideError(f"open_clip has no architecture {architecture!r}.{close} A config file (.json) works too.")
    if not open_clip.is_pretrained_cfg(architecture, weights) and not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise GuideError(
            f"{weights!r} is neither a file nor a published tag of {architecture}.{_close_matches(weights, tags)} "
            f"Check the path, or use one of the tags: {', '.join(tags) or 'none are published'}."
        )
    return architecture, weights


def _register(path: Path) -> str:
    """Add a model config to open_clip and return its name there, the stem of the file."""
    import open_clip

    try:
        config = read_config(path)
    except (OSError, TypeError, ValueError) as error:
        raise GuideError(f"The model config {path} could not be used: {error}. Check the path.") from error
    if open_clip.get_model_config(path.stem) != config:  # the registry is global: add once
        if _is_listed(path.stem):
            raise GuideError(f"open_clip has a {path.stem} of its own; rename {path} and its weights.")
        try:
            open_clip.add_model_config(path)  # reads the configs that were added before, too
        except (OSError, ValueError) as error:
            raise GuideError(f"A model config that was loaded before has changed ({error}). Restart.") from error
    return path.stem


def _is_listed(model_name: str) -> bool:
    """Whether open_clip has this architecture itself."""
    import open_clip

    return Path(open_clip.__file__).with_name("model_configs").joinpath(f"{model_name}.json").is_file()


def _normalization(architecture: str) -> dict[str, Any] | None:
    """Return mean and std for a local file, if all published weights of its architecture share them."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    values = {(tuple(c["mean"]), tuple(c["std"])) for c in configs if c.get("mean") and c.get("std")}
    return dict(zip(("mean", "std"), values.pop(), strict=True)) if len(values) == 1 else None


def _unknown(requested: str, built_in: Mapping[str, Path]) -> str:
    import open_clip

    if Path(requested).is_file():
        return f"{requested} needs its architecture: 'ViT-B-32:{requested}', or load_guide(path, 'ViT-B-32')."
    known = [*built_in, *open_clip.list_pretrained(as_str=True)]
    return (
        f"There is no guide {requested!r}.{_close_matches(requested, known)} Use a built-in name "
        f"({', '.join(built_in) or 'none'}), 'architecture:tag' such as ViT-B-32:openai, 'hf-hub:owner/name', or "
        "'architecture:path'."
    )


def _close_matches(name: str, known: Sequence[str]) -> str:
    lower = {other.lower(): other for other in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, 3, 0.5)]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _download_failed(architecture: str, published: Mapping[str, Any], error: Exception) -> str:
    import open_clip

    if architecture.startswith(HUB):
        return (
            f"{architecture} could not be downloaded ({_first_line(error)}). Check the name, and load it once with a "
            "connection to the network; open_clip keeps it for later."
        )
    local = f"{architecture}-quickgelu"
    local = local if published.get("quick_gelu") and local in open_clip.list_models() else architecture
    repository = published.get("hf_hub", "").strip("/")
    hub_file = f"open_clip_model.safetensors of {repository} (Hugging Face hub)"
    source = hub_file if repository else published.get("url", "the file")
    return (
        f"The weights of {architecture} could not be downloaded ({_first_line(error)}). Offline, copy {source} "
        f"into your models folder and load '{local}:/path/to/that/file'."
    )


def _first_line(error: Exception, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
