"""Conversions of images between tensors, Pillow images, bytes and files, and resampling.

Inside the core an image is float32 [N, 3, H, W] in -1..1 (N images, H height, W width); only this module converts it.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .metadata import replace_atomically

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 16  # pixels per side of an image from outside; nothing is recognizable in fewer
_CHANNELS = {1: "gray", 3: "RGB", 4: "RGBA"}
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")  # others may run other programs
_MOST_PIXELS = 100_000_000  # a float image takes 12 bytes for each
_LARGEST_VALUE = 4.0  # generators exceed -1..1 slightly; bytes passed as -1..1 exceed it by far


def to_uint8(images: Tensor) -> Tensor:
    """Convert [N, 3, H, W] in -1..1 to uint8 [N, H, W, 3]; values beyond the range are clamped."""
    check_rgb(images)
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in -1..1, the exact inverse of `to_uint8`."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"Got {pixels.dtype} of shape {list(pixels.shape)}, expected uint8 [N, H, W, 3].")
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)  # in place: large photos fill memory


def to_pil(image: Tensor) -> Image.Image:
    """Convert one image, [C, H, W] or [1, C, H, W] with C 3 or 4 (RGBA), to a Pillow image."""
    from PIL import Image

    batch = image[None] if image.ndim == 3 else image
    if len(batch) != 1:
        raise ValueError(f"Got {len(batch)} images, expected one. Index the batch, or arrange it with grid().")
    if batch.shape[1] != 4:
        return Image.fromarray(to_uint8(batch)[0].cpu().numpy())
    rgba = Image.fromarray(to_uint8(batch[:, :3])[0].cpu().numpy())
    rgba.putalpha(Image.fromarray(to_uint8(batch[:, 3:].expand(-1, 3, -1, -1))[0, :, :, 0].cpu().numpy()))
    return rgba


def from_pil(image: Image.Image, alpha: bool = False) -> Tensor:
    """Convert a Pillow image of any mode to [1, 3, H, W] as a viewer shows it.

    EXIF rotation and ICC profiles are applied, 16-bit and float gray is scaled, transparency is composed over white;
    with `alpha` it becomes a fourth channel instead.

    Raises:
        ValueError: for integers beyond 16 bits and floats beyond 0..1, whose white point is unknown.
    """
    import numpy
    from PIL import Image, ImageOps

    image = _to_srgb(_to_bytes(ImageOps.exif_transpose(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if alpha:
            pixels = torch.from_numpy(numpy.array(rgba))[None]
            return torch.cat([from_uint8(pixels[..., :3]), from_uint8(pixels[..., 3:].expand(-1, -1, -1, 3))[:, :1]], 1)
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return from_uint8(torch.from_numpy(numpy.array(image.convert("RGB")))[None])


def _to_bytes(image: Image.Image) -> Image.Image:
    """Scale deep gray modes to 8 bits; Pillow's own conversion clips them."""
    import numpy
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = numpy.asarray(image if image.mode == "F" else image.convert("I"), dtype=numpy.float64)
    low, high, white = pixels.min(), pixels.max(), 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= white):  # NaN fails, too
        raise ValueError(
            f"Got a gray image of mode {image.mode} with values from {low:g} to {high:g}, expected 0 to {white:g}; "
            "map high dynamic range to 8 bits first."
        )
    scaled = Image.fromarray((pixels * (255 / white)).round().astype(numpy.uint8))
    scaled.info = {"icc_profile": image.info["icc_profile"]} if "icc_profile" in image.info else {}
    return scaled


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert from the embedded ICC profile to sRGB; images without one are sRGB."""
    from PIL import ImageCms

    icc = image.info.get("icc_profile")
    if not icc:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colors = image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        converted = ImageCms.profileToProfile(colors, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:  # for other channels, or damaged: viewers ignore it
        logging.getLogger(__name__).warning("The ICC profile of an image was ignored: %s", error)
        return image
    assert converted is not None  # only a conversion in place returns nothing
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def load_image(path: str | os.PathLike[str], alpha: bool = False) -> Tensor:
    """Read an image file as [1, 3, H, W] in -1..1.

    Args:
        alpha: return [1, 4, H, W] for an image with transparency, instead of composing it over white.

    Raises:
        ValueError: for a missing file, one that Pillow cannot read, and a gray image of unknown range.
    """
    from PIL import Image, UnidentifiedImageError

    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no image file. Check the path.")
    Image.init()
    try:
        content = io.BytesIO(Path(path).read_bytes())  # its reads take no memory for what lies beyond the end
        with Image.open(content, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"got {image.width} x {image.height} pixels, expected at most {_MOST_PIXELS}")
            return from_pil(image, alpha)
    except UnidentifiedImageError:
        raise ValueError(f"{path} could not be read as an image. Expected PNG, JPEG or WebP.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise any exception on invalid bytes
        raise ValueError(f"{path} could not be read as an image ({error}). Expected PNG, JPEG or WebP.") from error


def save_image(image: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one image, [C, H, W] or [1, C, H, W] with C 3 or 4 (RGBA), as PNG, atomically.

    Raises:
        ValueError: for more than one image, and for a name that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Got the file name {path.name}, expected one that ends in .png.")
    pil = to_pil(image)
    with replace_atomically(path) as temporary:
        pil.save(temporary, format="PNG")
    return path


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resample [N, 3, H, W] by antialiased bicubic interpolation, differentiably; equal sizes return the input itself.

    Args:
        size: side length, or height and width. Values may exceed -1..1 slightly at edges.
    """
    check_rgb(images)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"Got the size {height} x {width}, expected at least 1 x 1.")
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def square(images: Tensor, size: int) -> Tensor:
    """Crop the central square of images [N, C, H, W] and resample it to [N, 3, size, size].

    Larger images are reduced by area averaging, as in StyleGAN2's projector (arXiv:1912.04958, appendix D), smaller
    ones enlarged. C is 1 for gray, 3 for color and 4 with transparency, composed over white; all lie in -1..1.

    Raises:
        ValueError: for images that `check_images` refuses, and a size under 16.
    """
    check_images(images)
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, usually the generator's resolution.")
    if images.shape[1] == 4:
        alpha = ((images[:, 3:] + 1) / 2).clamp(0, 1)
        images = images[:, :3] * alpha + (1 - alpha)
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = images.float()[:, :, top : top + side, left : left + side].expand(-1, 3, -1, -1)
    return F.interpolate(crop, size=(size, size), mode="area") if side > size else resize(crop, size).clamp(-1, 1)


def check_images(images: Tensor, channels: Sequence[int] = (1, 3, 4)) -> None:
    """Check images from outside, [N, C, H, W] in -1..1.

    Raises:
        ValueError: for other channels, sides under 16 pixels, NaN, infinity and values far from -1..1.
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in channels:
        kinds = " or ".join(f"{count} ({_CHANNELS[count]})" for count in channels)
        raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, C, H, W] with N > 0 and C {kinds}.")
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"Got images of {width} x {height} pixels, expected at least {SMALLEST} on each side.")
    if not images.isfinite().all():
        raise ValueError("Got images with NaN or infinity, expected values in -1..1.")
    if (largest := images.abs().max().item()) > _LARGEST_VALUE:
        raise ValueError(f"Got images with values up to {largest:.4g}, expected -1..1; divide bytes by 127.5, minus 1.")


def check_rgb(images: Tensor) -> None:
    """Raise ValueError unless images are [N, 3, H, W] with N > 0."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, 3, H, W] with at least one image.")
