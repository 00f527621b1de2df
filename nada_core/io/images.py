"""The one place where images change range, size or kind, and where they are arranged for people to look at.

Inside the core an image is float32 [N, 3, H, W] in -1..1; files and user interfaces want bytes. Grids come back in the
core's own convention, so `save_image` takes them like any other image. `blank_sheet`, `measure` and `write` are what
every drawing begins with, here and in plots.py.

Shapes: N images, H height, W width.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 16  # pixels a side of a picture from outside: there is nothing to recognise in fewer

_KINDS = {1: "grey", 3: "RGB", 4: "RGBA"}

_FARTHEST = 4.0  # a generator overshoots -1..1 a little; bytes taken for -1..1 are far beyond


def to_uint8(images: Tensor) -> Tensor:
    """[N, 3, H, W] in -1..1 (values beyond are clamped) -> uint8 [N, H, W, 3]."""
    _expect_images(images)
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in -1..1; the exact inverse of to_uint8."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"Got {pixels.dtype} of shape {list(pixels.shape)}, expected uint8 [N, H, W, 3].")
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """One image, [3, H, W] or [1, 3, H, W], as a Pillow image."""
    from PIL import Image

    batch = image[None] if image.ndim == 3 else image
    if len(batch) != 1:
        raise ValueError(f"Got {len(batch)} images, expected one. Index the batch, or arrange it with grid().")
    return Image.fromarray(to_uint8(batch)[0].cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as [1, 3, H, W]; transparency is laid on white, rotation tags are obeyed."""
    import numpy
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return from_uint8(torch.from_numpy(numpy.array(image.convert("RGB")))[None])


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file as [1, 3, H, W] in -1..1.

    Raises:
        ValueError: when there is no such file or it is not an image Pillow can read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return from_pil(image)
    except FileNotFoundError:
        raise ValueError(f"There is no image file at {path}. Check the path.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} could not be read as an image ({error}). Expected PNG, JPEG or WebP.") from error


def save_image(image: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one image, [3, H, W] or [1, 3, H, W], as PNG. The file appears whole or not at all.

    Raises:
        ValueError: for more than one image, and for a name that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Got the file name {path.name}, expected one that ends in .png.")
    picture = to_pil(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format="PNG")
        os.chmod(partial, 0o644)  # mkstemp makes private files; a picture is meant to be looked at
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resample [N, 3, H, W] to size (a side, or height and width), antialiased bicubic, differentiable.

    Returns the images untouched when they already have that size. Bicubic may overshoot -1..1 slightly at edges.
    """
    _expect_images(images)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"Got the size {height} x {width}, expected at least 1 x 1.")
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def square(images: Tensor, size: int) -> Tensor:
    """Pictures of any size and kind as a generator of `size` pixels makes them: [N, C, H, W] -> [N, 3, size, size].

    The middle square is cut out; larger ones are reduced by area, as projectors do (StyleGAN2, arXiv:1912.04958,
    appendix D), smaller ones enlarged. C is 1 for grey, 3 for colour, 4 with transparency, which is laid on white; all
    channels lie in -1..1. Raises ValueError for what `check_images` refuses, and for a size under 16.
    """
    check_images(images)
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, as a rule the generator's.")
    if images.shape[1] == 4:
        cover = ((images[:, 3:] + 1) / 2).clamp(0, 1)
        images = images[:, :3] * cover + (1 - cover)
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = images.float()[:, :, top : top + side, left : left + side].expand(-1, 3, -1, -1)
    return F.interpolate(cut, size=(size, size), mode="area") if side > size else resize(cut, size).clamp(-1, 1)


def check_images(images: Tensor, channels: Sequence[int] = (1, 3, 4)) -> None:
    """Refuse what is no picture from outside: [N, C, H, W] in -1..1.

    Raises:
        ValueError: for other channels, sides under 16 pixels, NaN and infinity, and values that are far from -1..1.
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in channels:
        kinds = " or ".join(f"{one} ({_KINDS[one]})" for one in channels)
        raise ValueError(
            f"Got pictures of shape {list(images.shape)}, expected [N, C, H, W] with at least one picture "
            f"of {kinds} channels."
        )
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"Got pictures of {width} x {height} pixels, expected at least {SMALLEST} on each side; "
            "there is nothing to recognise in fewer."
        )
    if not images.isfinite().all():
        raise ValueError("Got pictures with NaN or infinity in them, expected -1..1; load them from a sound file.")
    if (farthest := images.abs().max().item()) > _FARTHEST:
        raise ValueError(
            f"Got pictures that reach {farthest:.4g}, expected -1..1; divide bytes by 127.5 and take 1 "
            "away, or use load_image."
        )


def _expect_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, 3, H, W] with at least one image.")
