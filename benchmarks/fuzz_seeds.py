"""Write the tiny real files that `benchmarks.fuzz` mutates, with the writers of the tests.

    PYTHONPATH=tests python -m benchmarks.fuzz_seeds FOLDER

FOLDER/READER/... are the seeds of a reader, and FOLDER/*.* what `benchmarks.isolation` needs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import fabricated_encoder
import numpy
import nvidia_pickle
import open_clip
import tensorflow_pickle
import tiny
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file

from nada_core import (
    Directions,
    Domain,
    Latents,
    export_onnx,
    export_rosinality,
    save_directions,
    save_domain,
    save_generator,
    save_latents,
)
from nada_core.adaptation.resume import SavedRun, save_run
from nada_core.models.stylegan2 import StyleGAN2

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}


def write_seeds(root: Path) -> None:
    """Write every seed below a new folder."""
    generator = tiny.generator(z_dim=5)  # rosinality's format wants z_dim equal to w_dim
    save_generator(generator, root / "generator.safetensors", {})
    (root / "tiny-clip.json").write_text(json.dumps(CONFIG))
    clip = open_clip.CLIP(**CONFIG).state_dict()
    save_file({name: value.contiguous() for name, value in clip.items()}, root / "guide.safetensors")
    _write_generators(root / "generator", generator)
    _write_latents(root / "latents", generator)
    _write_directions(root / "directions", generator)
    _write_networks(root, clip)
    _write_own_files(root, generator)
    _write_images(root / "image")
    for reader in ("generator", "latents", "directions", "encoder"):
        shutil.copytree(root / reader, root / "checkpoint", dirs_exist_ok=True)
    for reader in ("generator", "guide", "domain", "autosave"):
        shutil.copytree(root / reader, root / "info", dirs_exist_ok=True)
    if importlib.util.find_spec("onnx"):
        export_onnx(generator, root / "info" / "generator.onnx")


def _write_generators(folder: Path, generator: StyleGAN2) -> None:
    folder.mkdir()
    save_generator(generator, folder / "ours.safetensors", {"seed": 1}, recommended={"adapt": {"steps": 3}})
    export_rosinality(generator, folder / "rosinality.pt")
    content = torch.load(folder / "rosinality.pt", weights_only=True)
    torch.save(content, folder / "rosinality-old.pt", _use_new_zipfile_serialization=False)
    torch.save({"G_ema": generator, "step": 3}, folder / "module.pt")
    nvidia_pickle.dump({"G": None, "G_ema": nvidia_pickle.network(generator)}, folder / "nvidia.pkl")
    tensorflow_pickle.write(generator, folder / "tensorflow.pkl")


def _write_latents(folder: Path, generator: StyleGAN2) -> None:
    folder.mkdir()
    ws = generator.w_avg.expand(2, generator.num_ws, -1).clone()
    save_latents(Latents(ws, generator.draw_noise(1)), folder / "ours.safetensors", {"seed": 1})
    numpy.save(folder / "ws.npy", ws.numpy())
    numpy.savez(folder / "projected.npz", w=ws[:1].numpy())
    numpy.savez_compressed(folder / "packed.npz", w=ws[:1].numpy(), name="x")
    torch.save({"image.png": {"latent": ws[0], "noise": generator.draw_noise(1)}}, folder / "projector.pt")


def _write_directions(folder: Path, generator: StyleGAN2) -> None:
    folder.mkdir()
    vectors = torch.eye(generator.w_dim)[:3]
    save_directions(
        Directions(vectors[:, None], torch.ones(3), ("a", "b", "c")), folder / "ours.safetensors", {"seed": 1}
    )
    numpy.save(folder / "boundary.npy", vectors[:1].numpy())
    numpy.savez(folder / "ganspace.npz", lat_comp=vectors[:, None].numpy(), lat_stdev=numpy.ones(3, numpy.float32))
    torch.save({"ckpt": "x.pt", "eigvec": torch.eye(generator.w_dim)}, folder / "factor.pt")


def _write_networks(root: Path, clip: dict[str, torch.Tensor]) -> None:
    for name in ("encoder", "identity", "guide", "guide-config"):
        (root / name).mkdir()
    fabricated_encoder.write(root / "encoder" / "e4e.pt", "e4e")
    fabricated_encoder.write(root / "encoder" / "restyle.pt", "restyle-psp", namespace=True)
    torch.save(fabricated_encoder.face_state(), root / "identity" / "face.pth")
    save_file(fabricated_encoder.face_state(), root / "identity" / "face.safetensors")
    shutil.copy(root / "guide.safetensors", root / "guide" / "clip.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in clip.items()}}, root / "guide" / "clip.pt")
    shutil.copy(root / "tiny-clip.json", root / "guide-config" / "seed-clip.json")


def _write_own_files(root: Path, generator: StyleGAN2) -> None:
    for name in ("domain", "autosave", "provenance"):
        (root / name).mkdir()
    changed = tiny.generator(z_dim=5)
    with torch.no_grad():
        changed.get_parameter("synthesis.b8.conv0.weight").add_(1.0)
        changed.get_parameter("synthesis.b4.conv1.bias").add_(1.0)
    domain = Domain.between(generator, changed, {"seed": 1})
    for compact in (False, True):
        save_domain(domain, root / "domain" / f"compact-{compact}.safetensors", half=compact, compact=compact)
    weights = {"synthesis.b4.conv1.bias": torch.zeros(8)}
    moments = {"synthesis.b4.conv1.bias": {"exp_avg": torch.zeros(8)}}
    rng = torch.Generator().get_state()
    average = {"synthesis.b4.conv1.bias": torch.ones(8)}
    run = SavedRun(3, weights, average, moments, rng, ("b4.conv1",), [{"loss": 1.0}], {}, {"scale": 2.0})
    save_run(root / "autosave" / "run.safetensors", run, "fingerprint")
    shutil.copy(root / "generator" / "ours.safetensors", root / "provenance")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    pixels = numpy.arange(24 * 20 * 3, dtype=numpy.uint8).reshape(24, 20, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6  # orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for ending in ("png", "jpg", "webp", "tif", "bmp", "gif"):
        image.save(folder / f"plain.{ending}", exif=exif)
    for ending in ("png", "jpg"):
        image.save(folder / f"profile.{ending}", icc_profile=profile)
    Image.fromarray(pixels[..., 0].astype(numpy.uint16) * 256).save(folder / "deep.png")
    image.convert("RGBA").save(folder / "transparent.png")
    image.quantize(8).save(folder / "palette.png")


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
