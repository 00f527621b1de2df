"""Paste edited crops of faces back into their photos: the inverse of `face_alignment`, with a feathered mask.

By default the change of the crop is pasted, not the crop: what an edit leaves alone keeps every pixel of the photo, and
detail finer than the crop remains. The color match is Reinhard's (Reinhard et al. 2001, "Color transfer between
images", equations 10 and 11), in linear light.

Letters: P photos, N faces, C channels, H height, W width, S size, h and w of the part of a photo that a crop covers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..io.images import check_images
from ..runtime.config import setting, settings
from .face_alignment import cut
from .face_frame import FaceFrame

REGIONS = ("oval", "square")
_OVAL = (0.92, 0.98, 0.02)  # half axes and center, below the crop's, in half sides: head and hair of an FFHQ crop
_CORNER = 0.4  # radius of the square's corners, in half sides
_MAX_GAIN = 3.0  # of contrast, by the color match


@settings
class PasteConfig:
    """How crops are pasted into photos."""

    region: str = setting("oval", "part of the crop to paste: oval for the head, or square", choices=REGIONS)
    feather: float = setting(0.12, "width of the soft edge, as a share of the crop", low=0.0, high=0.5, step=0.01)
    detail: float = setting(
        1.0, "share of the photo's detail to keep that is finer than the crop", low=0.0, high=1.0, step=0.05
    )
    color_match: float = setting(
        0.0, "how far the colors of the crop are matched to those of the photo", low=0.0, high=1.0, step=0.05
    )


def paste_faces(
    photos: Tensor,
    crops: Tensor,
    frames: Sequence[FaceFrame],
    config: PasteConfig | None = None,
    on_face: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Paste crops into photos; pixels outside of the mask stay as they are, bit for bit.

    Where faces overlap, the largest is on top. Several crops of one face, such as the steps of an edit, give as many
    photos.

    Args:
        photos: [P, 3 or 4, H, W] in -1..1, those that the faces were cut from. Their alpha is kept.
        crops: [N, 3 or 4, S, S] in -1..1, of any size. Their alpha multiplies the mask.
        frames: one per crop, from `align_faces`; or one for all crops of a face.
        on_face: called with the number of finished faces.

    Returns:
        The photos and the mask [P, 1, H, W] in 0..1; it is the share of the crops in every pixel.

    Raises:
        ValueError: for other photos than those of the frames, and numbers that do not match.
    """
    config = config or PasteConfig()
    check_images(photos, channels=(3, 4))
    check_images(crops, channels=(3, 4))
    if crops.shape[-1] != crops.shape[-2]:
        raise ValueError(f"Got crops of {crops.shape[-1]} x {crops.shape[-2]} pixels, expected squares.")
    if len(frames) == len(photos) == 1 < len(crops):
        photos = photos.expand(len(crops), -1, -1, -1)
        frames = [replace(frames[0], image=index) for index in range(len(crops))]
    if len(frames) != len(crops):
        raise ValueError(f"Got {len(crops)} crops and {len(frames)} frames, expected one frame for each crop.")
    for index, frame in enumerate(frames):
        if frame.image >= len(photos):
            raise ValueError(f"Face {index} was cut from photo {frame.image}, but got {len(photos)} photos.")
        frame.check(photos[frame.image, None])
    result, mask = photos.float().clone(), torch.zeros_like(photos[:, :1], dtype=torch.float32)
    for done, index in enumerate(sorted(range(len(frames)), key=lambda index: frames[index].side)):
        frame = frames[index]
        _paste(photos[frame.image, None, :3], result, mask, crops[index, None].float(), frame, config)
        if on_face is not None:
            on_face(done + 1)
    return result, mask


def _paste(photo: Tensor, result: Tensor, mask: Tensor, crop: Tensor, frame: FaceFrame, config: PasteConfig) -> None:
    """Paste one crop [1, C, S, S] of a photo [1, 3, H, W] into `result` and `mask`, in place."""
    left, top, right, bottom = frame.box
    size = crop.shape[-1]
    positions = frame.positions(frame.size).to(crop)
    part = _mask(positions, config)
    edited = _warp(crop[:, :3], positions, frame.side)
    if crop.shape[1] == 4:
        part = part * _warp((crop[:, 3:].clamp(-1, 1) + 1) / 2, positions, frame.side).clamp(0, 1)
    below = photo[:, :, top:bottom, left:right]
    target = edited
    if config.detail or config.color_match:
        original = _warp(cut(photo, frame, size).to(crop), frame.positions(size).to(crop), frame.side)
        if config.color_match:
            edited = torch.lerp(edited, _match_colors(edited, original, part), config.color_match)
        target = torch.lerp(edited, below + (edited - original), config.detail)
    area = (slice(frame.image, frame.image + 1), slice(None, 3), slice(top, bottom), slice(left, right))
    blended = torch.lerp(result[area], target.clamp(-1, 1), part)
    result[area] = torch.where(part > 0, blended, result[area])
    covered = mask[area[0], :, top:bottom, left:right]
    covered += part * (1 - covered)  # exact for small shares


def _warp(crop: Tensor, positions: Tensor, side: float) -> Tensor:
    """Sample a crop [1, C, S, S] at positions [1, h, w, 2], after averaging details finer than the photo's pixels."""
    target = max(math.ceil(side), 1)
    if target < crop.shape[-1]:
        crop = F.interpolate(crop, size=(target, target), mode="bicubic", antialias=True, align_corners=False)
    return F.grid_sample(crop, positions, mode="bicubic", padding_mode="border", align_corners=False)


def _mask(positions: Tensor, config: PasteConfig) -> Tensor:
    """The share of the crop [1, 1, h, w] at positions in it [1, h, w, 2]: 1 inside, exactly 0 outside of the region."""
    x, y = positions.unbind(-1)
    if config.region == "oval":
        across, along, middle = _OVAL
        depth = (1 - torch.hypot(x / across, (y - middle) / along)) * across
    else:
        x, y = x.abs() - (1 - _CORNER), y.abs() - (1 - _CORNER)
        depth = _CORNER - torch.hypot(x.clamp(min=0), y.clamp(min=0)) - torch.maximum(x, y).clamp(max=0)
    ramp = (depth / (2 * config.feather)).clamp(0, 1) if config.feather else (depth > 0).float()
    return (ramp * ramp * (3 - 2 * ramp))[:, None]


def _match_colors(edited: Tensor, original: Tensor, weight: Tensor) -> Tensor:
    """Give an image the mean and the contrast of another in each channel, in linear light, within a mask."""
    (image, mean, deviation), (_, wanted, contrast) = (
        _statistics(_to_linear(one), weight) for one in (edited, original)
    )
    gain = (contrast / deviation.clamp(min=1e-6)).clamp(1 / _MAX_GAIN, _MAX_GAIN)
    return _from_linear((image - mean) * gain + wanted)


def _statistics(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = weight.sum().clamp(min=1e-6)
    mean = (image * weight).sum((2, 3), keepdim=True) / total
    return image, mean, (((image - mean) ** 2 * weight).sum((2, 3), keepdim=True) / total).sqrt()


def _to_linear(image: Tensor) -> Tensor:
    """sRGB in -1..1 to linear light in 0..1 (IEC 61966-2-1)."""
    value = ((image + 1) / 2).clamp(0, 1)
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _from_linear(light: Tensor) -> Tensor:
    value = light.clamp(0, 1)
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055) * 2 - 1
