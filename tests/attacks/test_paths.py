"""Paths that are no files, configs that point elsewhere, and images that are bombs or programs."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused
from PIL import Image

from benchmarks.fuzz import READERS
from benchmarks.fuzz_seeds import CONFIG


@pytest.mark.parametrize("reader", READERS)
def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path, refused: Refused, reader: str) -> None:
    """Opening a pipe would wait for its other end, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "pipe-link.json").symlink_to("pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "nowhere.json").symlink_to("absent")
    (tmp_path / "folder.json").mkdir()
    error = {"guide": "GuideError", "guide-config": "GuideError", "image": "ValueError"}.get(reader, "CheckpointError")
    for name in ("pipe", "pipe-link", "loop", "device", "nowhere", "folder"):
        refused(tmp_path / f"{name}.json", error, reader)


def test_links_to_files_are_followed(tmp_path: Path, seeds: Path, refused: Refused) -> None:
    (tmp_path / "x.safetensors").symlink_to(seeds / "generator.safetensors")
    with pytest.raises(AssertionError, match="'read'"):
        refused(tmp_path / "x.safetensors")


CONFIGS: dict[str, Any] = {
    "text of the hub": {"text_cfg": {**CONFIG["text_cfg"], "hf_model_name": "somebody/model"}},
    "tokenizer of the hub": {"text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "somebody/model"}},
    "tokenizer of a folder": {"text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "../../evil"}},
    "remote code": {"text_cfg": {**CONFIG["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}},
    "image of the hub": {"vision_cfg": {"timm_model_name": "hf-hub:somebody/model", "timm_model_pretrained": True}},
    "image of a folder": {"vision_cfg": {"timm_model_name": "local-dir:/evil"}},
    "many layers": {"vision_cfg": {**CONFIG["vision_cfg"], "layers": 10**6}},
    "list of layers": {"vision_cfg": {**CONFIG["vision_cfg"], "layers": [10**5] * 4}},
    "wide": {"vision_cfg": {**CONFIG["vision_cfg"], "width": 10**6}},
    "very wide": {"embed_dim": 10**30},
    "words": {"text_cfg": {**CONFIG["text_cfg"], "vocab_size": 10**9}},
    "context": {"text_cfg": {**CONFIG["text_cfg"], "context_length": 10**6}},
    "large image": {"vision_cfg": {**CONFIG["vision_cfg"], "image_size": 10**6}},
    "small patches": {"vision_cfg": {**CONFIG["vision_cfg"], "image_size": 2048, "patch_size": 1}},
    "fixed positions": {
        "vision_cfg": {**CONFIG["vision_cfg"], "image_size": [10**5] * 2, "pos_embed_type": "sin_cos_2d"}
    },
    "no layers": {"vision_cfg": {**CONFIG["vision_cfg"], "layers": "x"}},
    "no tower": {"vision_cfg": []},
    "unknown key": {"exec": "x"},
    "infinite": {"embed_dim": float("inf")},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_clip_models_are_not_trusted(tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / "hostile-clip.json").write_text(json.dumps(CONFIG | CONFIGS[name]))
    refused(tmp_path / "hostile-clip.json", "GuideError", "guide-config")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[[]]", b"1", b"\xff", b"{" + b" " * (2 << 20) + b"}"], ids=len)
def test_configs_that_are_no_objects_are_refused(tmp_path: Path, refused: Refused, content: bytes) -> None:
    (tmp_path / "hostile-clip.json").write_bytes(content)
    refused(tmp_path / "hostile-clip.json", "GuideError", "guide-config")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGES = {
    "pixels": png(20_000, 20_000),
    "more pixels": png((1 << 31) - 1, (1 << 31) - 1),
    "just too many": png(10_001, 10_000),
    "text": png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)))),
    "texts": png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1000_000)))] * 100),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "photoshop": b"8BPS\0\1" + bytes(100),
    "icon": b"\0\0\1\0\1\0" + bytes(100),
}


@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images_are_refused(refused: Refused, name: str) -> None:
    refused(IMAGES[name], "ValueError", "image")


def test_damaged_profiles_and_exif_change_nothing_else(refused: Refused) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG", icc_profile=b"\0" * 200, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with pytest.raises(AssertionError, match="'read'|'refused'"):
        refused(buffer.getvalue(), "nothing", "image")
