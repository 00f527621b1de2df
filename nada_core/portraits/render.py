"""Render the built-in world: the same portrait content in ten styles, drawn with signed distance functions.

A real data set never shows one person both as a photo and as a zombie. The renderer does, so every adaptation of the
built-in generator can be compared with the true picture. Shapes are signed distance functions with analytic
antialiasing (https://iquilezles.org/articles/distfunctions2d/ for the ellipse bound), batched in torch on the CPU.

Letters: N batch, A attributes, H = W = 64 pixels. Coordinates run from -1 (left, top) to 1 (right, bottom).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RESOLUTION = 64

#: The columns of a content tensor. Every attribute is uniform in 0..1 and means the same in every style.
ATTRIBUTES = tuple(
    "face_width face_height jaw skin hair_colour hair_length hair_volume fringe eye_size eye_gap mouth_curve "
    "mouth_width glasses background_hue background_light shift_x shift_y shirt_hue".split()
)

STYLES = tuple(
    "photo,pencil sketch,watercolor painting,3d render,zombie,elf,anime,joker,marble statue,pixel art".split(",")
)

#: Attributes that a style does not show; they cannot be read from its pictures.
HIDDEN: dict[str, set[str]] = {
    "pencil sketch": {"background_hue", "background_light", "shirt_hue"},
    "joker": {"skin", "shirt_hue", "mouth_curve", "mouth_width"},
    "marble statue": {"skin", "hair_colour", "shirt_hue"},
    "pixel art": {"eye_size", "jaw", "mouth_curve", "mouth_width"},
}


def visible(style: str) -> Tensor:
    """Return a mask [A] of the attributes that a style shows."""
    return torch.tensor([name not in HIDDEN.get(style, ()) for name in ATTRIBUTES])


def readable(attributes: Tensor) -> Tensor:
    """Return the attributes [N, A] as a picture shows them: glasses are on or off, the others are unchanged."""
    column = ATTRIBUTES.index("glasses")
    out = attributes.clone()
    out[:, column] = _glasses_opacity(attributes[:, column])
    return out


class Region(NamedTuple):
    """One filled shape; later regions cover earlier ones."""

    distance: Tensor  # [N, H, W], negative inside
    color: Tensor  # [N, 3, H, W] or [N, 3, 1, 1], in 0..1
    ink: float = 1.0  # opacity of its outline in the styles that draw outlines


def render(attributes: Tensor, style: str = "photo") -> Tensor:
    """Draw a batch of contents in one style.

    Args:
        attributes: [N, A] in 0..1, with the columns of `ATTRIBUTES`.

    Returns:
        Pictures [N, 3, 64, 64] in -1..1.

    Raises:
        ValueError: If the style is unknown or the number of attributes is wrong.
    """
    if style not in STYLES:
        raise ValueError(f"Got style {style!r}, expected one of {', '.join(STYLES)}.")
    if attributes.ndim != 2 or attributes.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"Got attributes of shape {tuple(attributes.shape)}, expected [N, {len(ATTRIBUTES)}].")
    regions, background = _draw(attributes, style)
    picture = background
    for region in regions:
        picture = torch.lerp(picture, region.color.expand_as(picture), _coverage(region.distance)[:, None])
    return _finish(style, picture, regions).clamp(0, 1) * 2 - 1


_AXIS = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1
_Y, _X = torch.meshgrid(_AXIS, _AXIS, indexing="ij")
_PIXEL = 2 / RESOLUTION

Point = tuple[Tensor, Tensor]


def _coverage(distance: Tensor) -> Tensor:
    """The part of each pixel that lies inside: analytic antialiasing."""
    return (0.5 - distance / _PIXEL).clamp(0, 1)


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    k1 = torch.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-9)
    k2 = torch.sqrt((x / (rx * rx)) ** 2 + (y / (ry * ry)) ** 2 + 1e-9)
    return k1 * (k1 - 1) / k2


def _segment(x: Tensor, y: Tensor, start: Point, end: Point, radius: float) -> Tensor:
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    t = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return torch.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2 + 1e-9) - radius


def _triangle(x: Tensor, y: Tensor, a: Point, b: Point, c: Point) -> Tensor:
    """Distance bound of a triangle with the corners a, b and c in either orientation."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    sides = [
        ((y - py) * (qx - px) - (x - px) * (qy - py))
        / torch.sqrt((qx - px) ** 2 + (qy - py) ** 2 + 1e-9)
        * -area.sign()
        for (px, py), (qx, qy) in ((a, b), (b, c), (c, a))
    ]
    return torch.stack(sides).amax(0)


def _ramp(t: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Interpolate between color stops: t [N, 1, 1] in 0..1 -> [N, 3, 1, 1]."""
    table = torch.tensor(stops)
    position = t.flatten() * (len(stops) - 1)
    low = position.floor().clamp(max=len(stops) - 2).long()
    return torch.lerp(table[low], table[low + 1], (position - low)[:, None])[:, :, None, None]


def _rgb(r: float, g: float, b: float) -> Tensor:
    return torch.tensor([r, g, b]).view(1, 3, 1, 1)


def _gray(picture: Tensor) -> Tensor:
    return (picture * _rgb(0.299, 0.587, 0.114)).sum(1, keepdim=True)


def _saturate(picture: Tensor, factor: float) -> Tensor:
    return _gray(picture) + (picture - _gray(picture)) * factor


def _blur(picture: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1).repeat(picture.shape[1], 1, 1, 1)
    padded = F.pad(picture, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps, groups=picture.shape[1]), taps.mT, groups=picture.shape[1])


def _smooth_noise(seed: int, cells: int) -> Tensor:
    """Fixed noise [1, 1, H, W] in about -1..1, for paper, marble and paint."""
    values = torch.rand(1, 1, cells, cells, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(values, size=(RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False)


_SKIN = ((0.98, 0.84, 0.75), (0.90, 0.69, 0.54), (0.70, 0.47, 0.33), (0.42, 0.27, 0.19))
_HAIR = ((0.10, 0.08, 0.09), (0.33, 0.19, 0.11), (0.66, 0.29, 0.12), (0.92, 0.77, 0.42))
_SHIRT = ((0.72, 0.20, 0.22), (0.85, 0.62, 0.20), (0.25, 0.55, 0.35), (0.20, 0.38, 0.70), (0.48, 0.30, 0.62))
_WALL = ((0.80, 0.52, 0.50), (0.80, 0.72, 0.45), (0.48, 0.70, 0.52), (0.45, 0.64, 0.82), (0.66, 0.55, 0.80))
_SHADING = {"3d render": 1.7, "anime": 0.0, "marble statue": 1.5}  # strength of the shading, else 1
_EYE_Y = -0.06
_SIDES = (-1.0, 1.0)


class Colors(NamedTuple):
    """Colors in 0..1, [N, 3, 1, 1] or [N, 3, H, W]."""

    skin: Tensor
    hair: Tensor
    shirt: Tensor


class Face(NamedTuple):
    """The content of a batch and the geometry that follows from it."""

    a: dict[str, Tensor]  # attribute -> [N, 1, 1]
    x: Tensor  # [N, H, W], relative to the middle of the face
    y: Tensor
    width: Tensor  # [N, 1, 1], half axes of the face
    height: Tensor
    gap: Tensor  # [N, 1, 1], distance of an eye from the middle


def _draw(attributes: Tensor, style: str) -> tuple[list[Region], Tensor]:
    """Return the regions from back to front and the background [N, 3, H, W], with colors in 0..1."""
    a = {name: attributes[:, i, None, None] for i, name in enumerate(ATTRIBUTES)}
    x, y = 0.84 * (_X - (a["shift_x"] - 0.5) * 0.24), 0.84 * (_Y - (a["shift_y"] - 0.5) * 0.2)
    width, height = 0.33 + 0.13 * a["face_width"], 0.44 + 0.12 * a["face_height"]
    face = Face(a, x, y, width, height, 0.145 + 0.075 * a["eye_gap"])
    base = _base_colors(a, style)
    shaded = _shade(face, base, style)
    back_hair, fringe = _hair(face, style)
    neck = torch.maximum(x.abs() - width * 0.45, torch.maximum(-y, y - 0.85))
    regions = [
        Region(back_hair, shaded.hair * 0.82),
        Region(neck, shaded.skin * 0.82, 0.6),
        Region(_ellipse(x, y - 1.18, 0.80, 0.50), shaded.shirt),
        Region(_ellipse(x, y - 0.70, width * 0.55, 0.12), shaded.skin * 0.86, 0.5),  # collar
    ]
    if style != "elf":
        ears = [_ellipse(x - side * width, y - 0.03, 0.075, 0.12) for side in _SIDES]
        regions += [Region(ear, shaded.skin * 0.92, 0.7) for ear in ears]
    chin = 1 + (0.15 + 0.55 * a["jaw"]) * (y / height).clamp(min=0) ** 2
    regions.append(Region(_ellipse(x * chin, y, width, height), shaded.skin))
    for side in _SIDES:
        regions += _eye(face, side, base, style)
    zero = 0 * face.gap
    nose = _segment(x, y, (zero, 0.04 + zero), (0.03 + zero, 0.15 + zero), 0.010 if style == "anime" else 0.022)
    regions.append(Region(nose + (0.004 if style == "anime" else 0.0), shaded.skin * 0.80, 0.6))
    regions += [*_mouth(face, base, style), Region(fringe, shaded.hair)]
    if style == "elf":  # drawn over the hair, because long hair would hide them
        regions += _pointed_ears(face, base, shaded)
    regions.append(_glasses(face))
    return regions, _background(a, style)


def _base_colors(a: dict[str, Tensor], style: str) -> Colors:
    """Colors before shading."""
    skin, hair, shirt = _ramp(a["skin"], _SKIN), _ramp(a["hair_colour"], _HAIR), _ramp(a["shirt_hue"], _SHIRT)
    if style == "zombie":
        skin = 0.22 * _gray(skin) + _rgb(0.25, 0.46, 0.19)
        hair = 0.45 * _gray(hair) + _rgb(0.16, 0.19, 0.12)
        shirt = 0.35 * shirt + 0.25 * _gray(shirt) + _rgb(0.10, 0.08, 0.04)
    if style == "joker":
        skin = _rgb(0.95, 0.94, 0.92).expand_as(skin)
        hair = _rgb(0.08, 0.30, 0.10) + 0.45 * _gray(hair) * _rgb(0.5, 1.0, 0.4)
        shirt = _rgb(0.42, 0.12, 0.50).expand_as(shirt)
    if style == "marble statue":
        marble = _rgb(0.86, 0.86, 0.84) - 0.16 * (1 - _smooth_noise(3, 7).abs() * 3).clamp(min=0)
        skin, hair, shirt = marble, marble * 0.86, marble * 0.93
    if style == "anime":
        skin = torch.lerp(skin, _rgb(1.0, 0.92, 0.86), 0.35)
    return Colors(skin, hair, shirt)


def _shade(face: Face, base: Colors, style: str) -> Colors:
    """Light from the upper left: a rounded head darkens towards the lower right."""
    x, y, width = face.x, face.y, face.width
    shading, gloss = _SHADING.get(style, 1.0), float(style == "3d render")
    light = ((-0.55 * x / 0.5) + (-0.6 * y / 0.6)).clamp(-1.2, 1.2)[:, None]
    skin = 1 + shading * (0.13 * light - 0.10 * ((x / width) ** 2)[:, None].clamp(max=1.2))
    strands = torch.sin(x * 34 + torch.sin(y * 5) * 1.5)[:, None] * (
        0.0 if style in ("anime", "marble statue") else 0.07
    )
    hair = (1 + shading * 0.16 * light + strands).clamp(0.4, 1.6)
    if style == "anime":  # two hard tones instead of a gradient, and a glossy band across the hair
        skin = 1 - 0.16 * _coverage(-(x * 0.8 + y * 0.35 - 0.22 * width))[:, None]
        hair = 1 + 0.45 * _coverage((y + 0.60 + 0.10 * torch.cos(x * 5)).abs() - 0.045)[:, None]
    skin_gloss = gloss * torch.exp(-((x + 0.14) ** 2 + (y + 0.20) ** 2) / 0.018)[:, None]
    hair_gloss = gloss * torch.exp(-(((y + 0.62 - 0.5 * x * x) / 0.05) ** 2))[:, None] * 0.8
    shirt_gloss = torch.exp(-(((x + 0.38) / 0.12) ** 2 + ((y - 0.86) / 0.07) ** 2))[:, None]
    return Colors(
        (base.skin * skin).clamp(0, 1) + skin_gloss * 0.55,
        (base.hair * hair).clamp(0, 1) + hair_gloss * 0.45,
        base.shirt * (1 + shading * 0.18 * light) + gloss * 0.35 * shirt_gloss,
    )


def _hair(face: Face, style: str) -> tuple[Tensor, Tensor]:
    """Distances of the hair behind the head and of the fringe."""
    a, x, y, _, height, _ = face
    volume = 0.06 + 0.13 * a["hair_volume"]
    back_width = face.width + volume
    crown = _ellipse(x, y + 0.10, back_width, height + 0.02 + volume * 0.7)
    length = -0.05 + 0.95 * a["hair_length"]
    curtain = torch.maximum((x.abs() - back_width * (1 - 0.06 * y)), torch.maximum(-y - 0.1, y - length))
    back = torch.minimum(torch.maximum(crown, y - length.clamp(min=0.15)), curtain)
    part = -height * (0.72 - 0.42 * a["fringe"])
    wave = 0.05 * torch.cos(x * 9) if style != "anime" else 0.10 * (1 - 2 * ((x * 5.5) % 1 - 0.5).abs()) - 0.04
    return back, torch.maximum(crown, y - part - wave - 0.35 * x * x)


def _eye(face: Face, side: float, base: Colors, style: str) -> list[Region]:
    """Socket, eyeball, iris and brow of one eye."""
    x, y = face.x - side * face.gap, face.y - _EYE_Y
    width = (0.055 + 0.045 * face.a["eye_size"]) * (1.75 if style == "anime" else 1.0)
    height = width * (1.15 if style == "anime" else 0.72)
    white = _rgb(0.97, 0.97, 0.96)
    ball = base.skin * 0.93 if style == "marble statue" else _rgb(0.93, 0.90, 0.55) if style == "zombie" else white
    regions = [Region(_ellipse(x, y, width, height), ball)]
    if style == "zombie":
        regions.insert(0, Region(_ellipse(x, y - 0.01, width * 1.75, width * 1.55), _rgb(0.13, 0.15, 0.11), 0.5))
    if style == "joker":
        regions.insert(0, Region(_ellipse(x, y, width * 1.6, width * 1.75), _rgb(0.10, 0.12, 0.16), 0.5))
    if style == "anime":
        lash = torch.maximum(_ellipse(x, y, width * 1.12, height * 1.12).abs() - 0.026, y + height * 0.25)
        regions += [
            Region(_ellipse(x, y - 0.01, width * 0.66, height * 0.86), _rgb(0.16, 0.30, 0.62), 0.3),
            Region(_ellipse(x, y, width * 0.32, height * 0.5), _rgb(0.05, 0.05, 0.12), 0.0),
            Region(_ellipse(x + 0.035, y + 0.05, 0.034, 0.042), white, 0.0),
            Region(lash, _rgb(0.07, 0.05, 0.08), 0.0),
        ]
    elif style == "zombie":
        regions.append(Region(_ellipse(x, y, 0.018, 0.018), _rgb(0.35, 0.08, 0.05), 0.0))
    elif style != "marble statue":
        regions.append(Region(_ellipse(x, y, height * 0.72, height * 0.72), _rgb(0.20, 0.15, 0.12), 0.4))
        if style == "3d render":
            regions.append(Region(_ellipse(x + 0.02, y + 0.02, 0.02, 0.02), white, 0.0))
    slant = 0.07 if style == "elf" else 0.0
    brow_y = _EYE_Y - height - 0.055
    inner, outer = (side * (face.gap - 0.075), brow_y + 0.02), (side * (face.gap + 0.085), brow_y + 0.01 - slant)
    brow = _segment(face.x, face.y, inner, outer, 0.017)
    return [*regions, Region(brow, base.skin * 0.75 if style == "marble statue" else base.hair * 0.7, 0.0)]


def _mouth(face: Face, base: Colors, style: str) -> list[Region]:
    """The lips, and the blood and scar of the zombie."""
    a, x, y, width, height, gap = face
    mouth_y, half = 0.27 + (height - 0.44) * 0.5, (0.10 + 0.09 * a["mouth_width"]) * (0.55 if style == "anime" else 1.0)
    bend = (a["mouth_curve"] - 0.5) * 0.16 * (0.7 if style == "anime" else 1.0)
    color = base.skin * _rgb(0.86, 0.52, 0.52)
    if style == "joker":
        half, bend, color = width * 0.66, 0.13 + 0 * bend, _rgb(0.75, 0.06, 0.08)
    if style == "zombie":
        color = _rgb(0.30, 0.03, 0.03)
    if style == "marble statue":
        color = base.skin * 0.72
    u = (x / half).clamp(-1.3, 1.3)
    thickness = (0.032 if style != "joker" else 0.055) * (1 - 0.6 * u * u).clamp(min=0.15)
    lips = torch.maximum((y - mouth_y - bend * (1 - 2 * u * u) * 0.5).abs() - thickness, x.abs() - half)
    regions = [Region(lips, color, 0.8)]
    if style == "zombie":
        for offset, length in ((-0.05, 0.16), (0.035, 0.11)):
            at = offset + 0 * gap
            drip = _segment(x, y, (at, mouth_y), (at, mouth_y + length), 0.020)
            regions.append(Region(drip, _rgb(0.60, 0.03, 0.03), 0.0))
        scar_x = width * 0.52
        scar = _segment(x, y, (scar_x, 0.08 + 0 * gap), (scar_x - 0.10, 0.30 + 0 * gap), 0.014)
        regions.append(Region(scar, _rgb(0.40, 0.12, 0.12), 0.0))
    return regions


def _pointed_ears(face: Face, base: Colors, shaded: Colors) -> list[Region]:
    regions = []
    for side in _SIDES:
        root, tip = side * face.width * 0.93, side * (face.width + 0.36)
        zero = 0 * root
        outer = _triangle(face.x, face.y, (root, zero - 0.10), (root, zero + 0.18), (tip, zero - 0.34)) - 0.02
        root, tip = root * 1.06, tip * 0.88
        inner = _triangle(face.x, face.y, (root, zero - 0.03), (root, zero + 0.11), (tip, zero - 0.25))
        regions += [Region(outer, shaded.skin), Region(inner, base.skin * 0.72, 0.3)]
    return regions


def _glasses_opacity(glasses: Tensor) -> Tensor:
    """0 below 0.42 and 1 above 0.58; linear between, so that pictures are continuous functions of their content."""
    return ((glasses - 0.42) / 0.16).clamp(0, 1)


def _glasses(face: Face) -> Region:
    x, y, radius = face.x, face.y - _EYE_Y, 0.135
    left, right = (_ellipse(x - side * face.gap, y, radius, radius).abs() for side in _SIDES)
    bridge = torch.maximum(y.abs(), x.abs() - (face.gap - radius).clamp(min=0))
    frame = torch.minimum(torch.minimum(left, right), bridge) - 0.024
    return Region(frame + (1 - _glasses_opacity(face.a["glasses"])) * (_PIXEL + 0.024), _rgb(0.08, 0.08, 0.10), 0.9)


def _background(a: dict[str, Tensor], style: str) -> Tensor:
    """A wall that darkens towards the bottom, or towards the edges in the 3d render."""
    wall, lightness = _ramp(a["background_hue"], _WALL), 0.55 + 0.55 * a["background_light"][:, None]
    fall_off = 1.06 - 0.16 * (_Y + 1)[None, None] / 2 if style != "anime" else torch.ones(1, 1, RESOLUTION, RESOLUTION)
    if style == "3d render":
        fall_off = 1.25 - 0.40 * (_X**2 + (_Y + 0.1) ** 2)[None, None]
    return (wall * lightness * fall_off).clamp(0, 1).expand(len(wall), 3, RESOLUTION, RESOLUTION)


def _outlines(regions: list[Region], thickness: float) -> Tensor:
    """Opacity [N, 1, H, W] of lines along the visible edges of the regions."""
    ink = torch.zeros_like(regions[0].distance)
    for region in regions:
        ink = ink * (1 - _coverage(region.distance))
        ink = torch.maximum(ink, region.ink * (1 - (region.distance.abs() / thickness) ** 2).clamp(min=0).sqrt())
    return ink[:, None]


def _finish(style: str, picture: Tensor, regions: list[Region]) -> Tensor:
    """Apply the effects of a style to the whole picture [N, 3, H, W] in 0..1."""
    person = torch.stack([region.distance for region in regions]).amin(0)
    if style == "pencil sketch":
        return _sketch(picture, person, _outlines(regions, 0.036))
    if style == "watercolor painting":
        return _watercolor(picture)
    if style == "3d render":  # saturated, with a bright rim around the person
        rim = torch.exp(-(((person + 0.05) / 0.035) ** 2))[:, None]
        vivid = _saturate(picture, 1.35).clamp(0, 1)
        return vivid + 0.40 * rim * (1 - vivid)
    if style == "anime":
        return _saturate(picture, 1.3).clamp(0, 1) * (1 - 0.85 * _outlines(regions, 0.030))
    if style == "marble statue":  # faint shadows along carved edges
        return picture * (1 - 0.30 * _outlines(regions, 0.030))
    if style == "pixel art":  # blocks of four pixels, six levels a channel
        blocks = F.avg_pool2d(_saturate(picture, 1.25).clamp(0, 1), 4)
        return F.interpolate(torch.round(blocks * 5) / 5, scale_factor=4.0, mode="nearest")
    return picture


def _sketch(picture: Tensor, person: Tensor, outlines: Tensor) -> Tensor:
    """Dark lines and diagonal hatching on pale paper; the background is blank."""
    gray = _gray(picture)
    tone = torch.lerp(torch.ones_like(gray), gray, _coverage(person)[:, None])
    hatch = 0.5 + 0.5 * torch.sin((_X - _Y) * 34)[None, None]
    shade = (0.75 - tone).clamp(min=0) * (0.45 + 0.75 * hatch)
    ink = torch.maximum(outlines * 0.9, shade.clamp(max=0.85))
    return _rgb(0.97, 0.96, 0.94) * (1 - ink) + _rgb(0.20, 0.20, 0.22) * ink


def _watercolor(picture: Tensor) -> Tensor:
    """Pale washes that bleed and darken at their edges, on paper that stays white along the border."""
    wobble = torch.stack([_smooth_noise(11, 9)[0, 0], _smooth_noise(12, 9)[0, 0]], -1)[None] * 0.045
    grid = torch.stack([_X, _Y], -1)[None] + wobble
    wash = _blur(picture, 1.1)
    pooled = wash - 0.9 * (_blur(wash, 2.2) - wash).clamp(min=0)
    wet = F.grid_sample(pooled, grid.expand(len(picture), -1, -1, -1), padding_mode="border", align_corners=False)
    blotch = 0.62 + 0.14 * _smooth_noise(13, 10)
    painted = 1 - (1 - _saturate(wet, 1.35)) * blotch.clamp(0.2, 1.0)
    edge = torch.maximum(_X.abs(), _Y.abs())[None, None] + 0.10 * _smooth_noise(15, 8)
    bare = ((edge - 0.80) / 0.08).clamp(0, 1)
    return torch.lerp(painted, _rgb(0.98, 0.975, 0.96).expand_as(painted), bare)
