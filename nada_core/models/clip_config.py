"""Model configs of open_clip (.json) from outside: a model of plain layers, no larger than its file of weights.

A config may name models, tokenizers and arguments of other packages, which open_clip downloads, or loads from any
folder. Those are available by the name of an architecture only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..io.metadata import parse_json
from .clip import GuideError

_LARGEST_FILE = 1 << 20  # bytes
_LARGEST_NUMBER = 1_000_000  # the vocabulary of multilingual models is 250,000
_MOST_LAYERS = 200
_LARGEST_IMAGE = 2048
_VISION_DEFAULTS = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}  # of open_clip
_REFERENCES = ("hf_", "timm_", "tokenizer_", "local-dir:", "hf-hub:")


def read_config(path: Path) -> dict[str, Any]:
    """Read a model config.

    Raises:
        ValueError: the file is missing or no config, names other models, or has sizes beyond those of any CLIP model.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"got {path.stat().st_size} bytes, expected a few hundred")
    config = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise ValueError("expected embed_dim, vision_cfg and text_cfg")
    if not isinstance(config["vision_cfg"], dict) or not isinstance(config["text_cfg"], dict):
        raise ValueError("vision_cfg and text_cfg are not both objects")
    for name, value in _values("", config):
        if name.startswith(_REFERENCES) or (isinstance(value, str) and value.startswith(_REFERENCES)):
            raise ValueError(f"{name} refers to another model; give the name of an architecture instead of a file")
        largest = _LARGEST_IMAGE if name == "image_size" else _LARGEST_NUMBER
        if isinstance(value, int | float) and not -largest <= value <= largest:
            raise ValueError(f"{name} is {value}, expected at most {largest}")
    for tower in (config["vision_cfg"], config["text_cfg"]):
        layers = tower.get("layers", 12)
        if sum(layers if isinstance(layers, list) else [layers]) > _MOST_LAYERS:
            raise ValueError(f"got {layers} layers, expected at most {_MOST_LAYERS}")
    return config


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value of a nested config with its own key."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _values(key, child)
    elif isinstance(value, list):
        for child in value:
            yield from _values(name, child)
    else:
        yield name, value


def hub_config(repository: str, cache_dir: str | None) -> dict[str, Any]:
    """Return the model config of a repository of open_clip on the Hugging Face hub; downloads it on first use.

    Raises:
        GuideError: it is no config of open_clip, or asks transformers to run code of the repository.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    path = Path(download_pretrained_from_hf(repository, filename="open_clip_config.json", cache_dir=cache_dir))
    whole = parse_json(path.read_text(encoding="utf-8"))
    config = whole.get("model_cfg") if isinstance(whole, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("embed_dim"), int):
        raise GuideError(f"open_clip_config.json of {repository} has no model_cfg with embed_dim. Use another model.")
    for name, value in _values("", config):
        if name == "trust_remote_code" or (isinstance(value, str) and value.startswith("local-dir:")):
            raise GuideError(f"{repository} asks for {name} = {value!r}, which is not allowed. Use another model.")
    return config


def fitting_architectures(size: Mapping[str, int]) -> list[str]:
    """Return open_clip's names of the architectures with an image tower of these sizes, see `vision_size`."""
    import open_clip

    def fits(config: Mapping[str, Any]) -> bool:
        tower = {**_VISION_DEFAULTS, **config["vision_cfg"], "dim": config["embed_dim"]}
        return "timm_model_name" not in tower and all(tower[key] == value for key, value in size.items())

    return [name for name in open_clip.list_models() if fits(open_clip.get_model_config(name))]


def check_size(model_name: str, weights: Path) -> None:
    """Raise ValueError if a registered model has more numbers than its file has bytes.

    The model is built without memory for its weights.
    """
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model(model_name, precision="fp32", device="meta")
    count = sum(value.numel() for value in (*model.parameters(), *model.buffers()))
    if count > weights.stat().st_size:
        raise ValueError(f"it has {count} numbers, but {weights} has {weights.stat().st_size} bytes")
