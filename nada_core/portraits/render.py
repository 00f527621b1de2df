"""The renderer of the built-in world: one content, ten styles, drawn with signed distances.

A real data set never shows the same person as a photo *and* as a zombie. A renderer does, so everything an adaptation
claims can be held against the true picture. Shapes are signed distance functions with analytic antialiasing
(https://iquilezles.org/articles/distfunctions2d/ for the ellipse bound); all drawing is batched torch on the CPU.

Letters: N batch, A attributes, H = W = 64 pixels. Coordinates run from -1 (left, top) to 1 (right, bottom).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RESOLUTION = 64

#: Content: every attribute is uniform in 0..1 and means the same in every style.
ATTRIBUTES = (
    "face_width",
    "face_height",
    "jaw",
    "skin",
    "hair_colour",
    "hair_length",
    "hair_volume",
    "fringe",
    "eye_size",
    "eye_gap",
    "mouth_curve",
    "mouth_width",
    "glasses",
    "background_hue",
    "background_light",
    "shift_x",
    "shift_y",
    "shirt_hue",
)

STYLES = (
    "photo",
    "pencil sketch",
    "watercolor painting",
    "3d render",
    "zombie",
    "elf",
    "anime",
    "joker",
    "marble statue",
    "pixel art",
)

#: What a style cannot show. An attribute that is not in the picture can be neither read nor kept.
HIDDEN: dict[str, set[str]] = {
    "pencil sketch": {"background_hue", "background_light", "shirt_hue"},
    "joker": {"skin", "shirt_hue", "mouth_curve", "mouth_width"},
    "marble statue": {"skin", "hair_colour", "shirt_hue"},
    "pixel art": {"eye_size", "jaw", "mouth_curve", "mouth_width"},
}


def visible(style: str) -> Tensor:
    """Which attributes a style shows: bool [A]."""
    hidden = HIDDEN.get(style, set())
    return torch.tensor([name not in hidden for name in ATTRIBUTES])


def readable(attributes: Tensor) -> Tensor:
    """What a picture can tell of its content: glasses are either worn or not, everything else is itself: [N, A]."""
    column = ATTRIBUTES.index("glasses")
    out = attributes.clone()
    out[:, column] = _worn(attributes[:, column])
    return out


class Region(NamedTuple):
    """One painted thing: where it is and how it was coloured; later regions cover earlier ones."""

    name: str
    distance: Tensor  # [N, H, W], negative inside
    colour: Tensor  # [N, 3, H, W] or [N, 3, 1, 1]
    ink: float = 1.0  # how strongly a drawn outline marks its edge


@dataclass(frozen=True)
class Look:
    """What a style changes in the drawing itself; picture-wide effects follow in `_FINISH`."""

    eye_scale: float = 1.0
    mouth_scale: float = 1.0
    shading: float = 1.0
    gloss: float = 0.0
    flat: bool = False
    pointed_ears: bool = False
    undead: bool = False
    clown: bool = False
    stone: bool = False
    big_iris: bool = False


_LOOKS: dict[str, Look] = {
    "3d render": Look(shading=1.7, gloss=1.0),
    "zombie": Look(undead=True),
    "elf": Look(pointed_ears=True),
    "anime": Look(eye_scale=1.75, mouth_scale=0.55, shading=0.0, flat=True, big_iris=True),
    "joker": Look(clown=True),
    "marble statue": Look(shading=1.5, stone=True),
}


def render(attributes: Tensor, style: str = "photo") -> Tensor:
    """Draw contents in one style.

    attributes: [N, A] in 0..1, columns as `ATTRIBUTES`. Returns [N, 3, 64, 64] in -1..1.
    Raises ValueError for an unknown style or a wrong number of attributes.
    """
    if style not in STYLES:
        raise ValueError(f"got style {style!r}; expected one of {', '.join(STYLES)}")
    if attributes.ndim != 2 or attributes.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"got attributes {tuple(attributes.shape)}; expected [N, {len(ATTRIBUTES)}]")
    regions, background = _draw(attributes, _LOOKS.get(style, Look()))
    picture = background
    for region in regions:
        picture = torch.lerp(picture, region.colour.expand_as(picture), _cover(region.distance)[:, None])
    if style in _FINISH:
        picture = _FINISH[style](picture, regions, background)
    return picture.clamp(0, 1) * 2 - 1


# ---------------------------------------------------------------------------------------------- shapes and colours

_AXIS = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1
_Y, _X = torch.meshgrid(_AXIS, _AXIS, indexing="ij")
_PIXEL = 2 / RESOLUTION


def _cover(distance: Tensor, softness: float = 1.0) -> Tensor:
    """Analytic antialiasing: the part of a pixel that lies inside."""
    return (0.5 - distance / (_PIXEL * softness)).clamp(0, 1)


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    k1 = torch.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-9)
    k2 = torch.sqrt((x / (rx * rx)) ** 2 + (y / (ry * ry)) ** 2 + 1e-9)
    return k1 * (k1 - 1) / k2


def _segment(x: Tensor, y: Tensor, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor, radius: Tensor | float) -> Tensor:
    dx, dy = bx - ax, by - ay
    t = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return torch.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2 + 1e-9) - radius


Point = tuple[Tensor, Tensor]


def _triangle(x: Tensor, y: Tensor, a: Point, b: Point, c: Point) -> Tensor:
    """Distance bound of a triangle with corners a, b, c, either orientation."""
    sides = []
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    for (px, py), (qx, qy) in ((a, b), (b, c), (c, a)):
        length = torch.sqrt((qx - px) ** 2 + (qy - py) ** 2 + 1e-9)
        sides.append(((y - py) * (qx - px) - (x - px) * (qy - py)) / length * -area.sign())
    return torch.stack(sides).amax(0)


def _ramp(t: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Colour along a path of stops: t [N, 1, 1] in 0..1 -> [N, 3, 1, 1]."""
    table = torch.tensor(stops)
    position = t.flatten() * (len(stops) - 1)
    low = position.floor().clamp(max=len(stops) - 2).long()
    colour = torch.lerp(table[low], table[low + 1], (position - low)[:, None])
    return colour[:, :, None, None]


def _rgb(r: float, g: float, b: float) -> Tensor:
    return torch.tensor([r, g, b]).view(1, 3, 1, 1)


def _grey(picture: Tensor) -> Tensor:
    return (picture * _rgb(0.299, 0.587, 0.114)).sum(1, keepdim=True)


def _blur(picture: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 1, -1).repeat(picture.shape[1], 1, 1, 1)
    padded = F.pad(picture, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps, groups=picture.shape[1]), taps.mT, groups=picture.shape[1])


def _cloud(seed: int, cells: int) -> Tensor:
    """Fixed smooth noise [1, 1, H, W] about -1..1: paper grain, marble veins, paint blotches."""
    values = torch.rand(1, 1, cells, cells, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(values, size=(RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False)


# ---------------------------------------------------------------------------------------------------- the portrait

_SKIN = ((0.98, 0.84, 0.75), (0.90, 0.69, 0.54), (0.70, 0.47, 0.33), (0.42, 0.27, 0.19))
_HAIR = ((0.10, 0.08, 0.09), (0.33, 0.19, 0.11), (0.66, 0.29, 0.12), (0.92, 0.77, 0.42))
_SHIRT = ((0.72, 0.20, 0.22), (0.85, 0.62, 0.20), (0.25, 0.55, 0.35), (0.20, 0.38, 0.70), (0.48, 0.30, 0.62))
_SCENE = ((0.80, 0.52, 0.50), (0.80, 0.72, 0.45), (0.48, 0.70, 0.52), (0.45, 0.64, 0.82), (0.66, 0.55, 0.80))


def _draw(attributes: Tensor, look: Look) -> tuple[list[Region], Tensor]:
    """Regions from back to front and the background [N, 3, H, W], both in 0..1 colours."""
    a = {name: attributes[:, i, None, None] for i, name in enumerate(ATTRIBUTES)}
    x = 0.84 * (_X - (a["shift_x"] - 0.5) * 0.24)
    y = 0.84 * (_Y - (a["shift_y"] - 0.5) * 0.2)
    width, height = 0.33 + 0.13 * a["face_width"], 0.44 + 0.12 * a["face_height"]
    skin, hair = _ramp(a["skin"], _SKIN), _ramp(a["hair_colour"], _HAIR)
    shirt, scene = _ramp(a["shirt_hue"], _SHIRT), _ramp(a["background_hue"], _SCENE)
    if look.undead:
        skin = 0.22 * _grey(skin) + _rgb(0.25, 0.46, 0.19)
        hair = 0.45 * _grey(hair) + _rgb(0.16, 0.19, 0.12)
        shirt = 0.35 * shirt + 0.25 * _grey(shirt) + _rgb(0.10, 0.08, 0.04)
    if look.clown:
        skin = _rgb(0.95, 0.94, 0.92).expand_as(skin)
        hair = _rgb(0.08, 0.30, 0.10) + 0.45 * _grey(hair) * _rgb(0.5, 1.0, 0.4)
        shirt = _rgb(0.42, 0.12, 0.50).expand_as(shirt)
    if look.stone:
        marble = _rgb(0.86, 0.86, 0.84) - 0.16 * (1 - _cloud(3, 7).abs() * 3).clamp(min=0)
        skin, hair, shirt = marble, marble * 0.86, marble * 0.93
    if look.flat:
        skin = torch.lerp(skin, _rgb(1.0, 0.92, 0.86), 0.35)

    # Light falls from the upper left; a rounded head darkens towards the lower right.
    light = ((-0.55 * x / 0.5) + (-0.6 * y / 0.6)).clamp(-1.2, 1.2)[:, None]
    round_off = 1 + look.shading * (0.13 * light - 0.10 * ((x / width) ** 2)[:, None].clamp(max=1.2))
    strands = torch.sin(x * 34 + torch.sin(y * 5) * 1.5)[:, None] * (0.0 if look.flat or look.stone else 0.07)
    hair_light = (1 + look.shading * 0.16 * light + strands).clamp(0.4, 1.6)
    if look.flat:  # two hard tones instead of a gradient, and a glossy band across the hair
        round_off = 1 - 0.16 * _cover(-(x * 0.8 + y * 0.35 - 0.22 * width))[:, None]
        hair_light = 1 + 0.45 * _cover((y + 0.60 + 0.10 * torch.cos(x * 5)).abs() - 0.045)[:, None]
    gloss = look.gloss * torch.exp(-((x + 0.14) ** 2 + (y + 0.20) ** 2) / 0.018)[:, None]
    sheen = look.gloss * torch.exp(-(((y + 0.62 - 0.5 * x * x) / 0.05) ** 2))[:, None] * 0.8
    face_colour = (skin * round_off).clamp(0, 1) + gloss * 0.55
    hair_colour = (hair * hair_light).clamp(0, 1) + sheen * 0.45
    shirt_colour = (
        shirt * (1 + look.shading * 0.18 * light)
        + look.gloss * 0.35 * torch.exp(-(((x + 0.38) / 0.12) ** 2 + ((y - 0.86) / 0.07) ** 2))[:, None]
    )

    chin = 1 + (0.15 + 0.55 * a["jaw"]) * (y / height).clamp(min=0) ** 2
    face = _ellipse(x * chin, y, width, height)
    volume = 0.06 + 0.13 * a["hair_volume"]
    back_width = width + volume
    crown = _ellipse(x, y + 0.10, back_width, height + 0.02 + volume * 0.7)
    length = -0.05 + 0.95 * a["hair_length"]
    curtain = torch.maximum((x.abs() - back_width * (1 - 0.06 * y)), torch.maximum(-y - 0.1, y - length))
    hair_back = torch.minimum(torch.maximum(crown, y - length.clamp(min=0.15)), curtain)
    part = -height * (0.72 - 0.42 * a["fringe"])
    wave = 0.05 * torch.cos(x * 9) if not look.flat else 0.10 * (1 - 2 * ((x * 5.5) % 1 - 0.5).abs()) - 0.04
    fringe = torch.maximum(crown, y - part - wave - 0.35 * x * x)
    shoulders = _ellipse(x, y - 1.18, 0.80, 0.50)
    neck = torch.maximum(x.abs() - width * 0.45, torch.maximum(-y, y - 0.85))

    regions = [Region("hair_back", hair_back, hair_colour * 0.82), Region("neck", neck, face_colour * 0.82, 0.6)]
    regions.append(Region("shirt", shoulders, shirt_colour))
    regions.append(Region("collar", _ellipse(x, y - 0.70, width * 0.55, 0.12), face_colour * 0.86, 0.5))
    if not look.pointed_ears:
        for side in (-1.0, 1.0):
            regions.append(Region("ear", _ellipse(x - side * width, y - 0.03, 0.075, 0.12), face_colour * 0.92, 0.7))
    regions.append(Region("face", face, face_colour))
    regions += _features(a, x, y, width, height, skin, hair, face_colour, look)
    regions.append(Region("fringe", fringe, hair_colour))
    if look.pointed_ears:  # in front of the hair, or long hair would hide the one thing that makes an elf
        for side in (-1.0, 1.0):
            root, tip = side * width * 0.93, side * (width + 0.36)
            corners = ((root, y * 0 - 0.10), (root, y * 0 + 0.18), (tip, y * 0 - 0.34))
            ear = _triangle(x, y, *corners) - 0.02
            regions.append(Region("ear", ear, face_colour, 1.0))
            corners = ((root * 1.06, y * 0 - 0.03), (root * 1.06, y * 0 + 0.11), (tip * 0.88, y * 0 - 0.25))
            regions.append(Region("ear_inner", _triangle(x, y, *corners), skin * 0.72, 0.3))
    regions += _glasses(a, x, y)

    lightness = 0.55 + 0.55 * a["background_light"][:, None]
    fall_off = 1.06 - 0.16 * (_Y + 1)[None, None] / 2 if not look.flat else torch.ones(1, 1, RESOLUTION, RESOLUTION)
    if look.gloss:
        fall_off = 1.25 - 0.40 * (_X**2 + (_Y + 0.1) ** 2)[None, None]
    background = (scene * lightness * fall_off).clamp(0, 1).expand(len(attributes), 3, RESOLUTION, RESOLUTION)
    return regions, background


def _eyes(a: dict[str, Tensor]) -> tuple[Tensor, float]:
    return 0.145 + 0.075 * a["eye_gap"], -0.06


def _features(
    a: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    width: Tensor,
    height: Tensor,
    skin: Tensor,
    hair: Tensor,
    face_colour: Tensor,
    look: Look,
) -> list[Region]:
    """Eyes, brows, nose and mouth, and what a creature does to them."""
    gap, eye_y = _eyes(a)
    size = (0.055 + 0.045 * a["eye_size"]) * look.eye_scale
    tall = size * (1.15 if look.big_iris else 0.72)
    out: list[Region] = []
    white = _rgb(0.97, 0.97, 0.96)
    for side in (-1.0, 1.0):
        ex, ey = x - side * gap, y - eye_y
        if look.undead:
            out.append(Region("socket", _ellipse(ex, ey - 0.01, size * 1.75, size * 1.55), _rgb(0.13, 0.15, 0.11), 0.5))
        if look.clown:
            out.append(Region("socket", _ellipse(ex, ey, size * 1.6, size * 1.75), _rgb(0.10, 0.12, 0.16), 0.5))
        eye_white = _rgb(0.93, 0.90, 0.55) if look.undead else white
        out.append(Region("eye", _ellipse(ex, ey, size, tall), skin * 0.93 if look.stone else eye_white))
        if look.big_iris:
            out.append(Region("iris", _ellipse(ex, ey - 0.01, size * 0.66, tall * 0.86), _rgb(0.16, 0.30, 0.62), 0.3))
            out.append(Region("pupil", _ellipse(ex, ey, size * 0.32, tall * 0.5), _rgb(0.05, 0.05, 0.12), 0.0))
            out.append(Region("spark", _ellipse(ex + 0.035, ey + 0.05, 0.034, 0.042), white, 0.0))
            lash = torch.maximum(_ellipse(ex, ey, size * 1.12, tall * 1.12).abs() - 0.026, ey + tall * 0.25)
            out.append(Region("lash", lash, _rgb(0.07, 0.05, 0.08), 0.0))
        elif look.undead:
            out.append(Region("pupil", _ellipse(ex, ey, 0.018, 0.018), _rgb(0.35, 0.08, 0.05), 0.0))
        elif not look.stone:
            out.append(Region("iris", _ellipse(ex, ey, tall * 0.72, tall * 0.72), _rgb(0.20, 0.15, 0.12), 0.4))
            if look.gloss:
                out.append(Region("spark", _ellipse(ex + 0.02, ey + 0.02, 0.02, 0.02), white, 0.0))
        slant = 0.07 if look.pointed_ears else 0.0
        brow_y = eye_y - tall - 0.055
        inner, outer = side * (gap - 0.075), side * (gap + 0.085)
        brow = _segment(x, y, inner, brow_y + 0.02 + x * 0, outer, brow_y + 0.01 - slant + x * 0, 0.017)
        out.append(Region("brow", brow, skin * 0.75 if look.stone else hair * 0.7, 0.0))

    nose = _segment(x, y, 0.0 * gap, 0.04 + 0 * gap, 0.03 + 0 * gap, 0.15 + 0 * gap, 0.010 if look.flat else 0.022)
    out.append(Region("nose", nose + (0.004 if look.flat else 0.0), face_colour * 0.80, 0.6))
    mouth_y, half = 0.27 + (height - 0.44) * 0.5, (0.10 + 0.09 * a["mouth_width"]) * look.mouth_scale
    bend = (a["mouth_curve"] - 0.5) * 0.16 * (0.7 if look.flat else 1.0)
    if look.clown:
        half, bend = width * 0.66, 0.13 + 0 * bend
    u = (x / half).clamp(-1.3, 1.3)
    thick = (0.032 if not look.clown else 0.055) * (1 - 0.6 * u * u).clamp(min=0.15)
    lips = torch.maximum((y - mouth_y - bend * (1 - 2 * u * u) * 0.5).abs() - thick, x.abs() - half)
    red = _rgb(0.75, 0.06, 0.08) if look.clown else skin * _rgb(0.86, 0.52, 0.52)
    if look.undead:
        red = _rgb(0.30, 0.03, 0.03)
    if look.stone:
        red = skin * 0.72
    out.append(Region("mouth", lips, red, 0.8))
    if look.undead:
        for offset, drop in ((-0.05, 0.16), (0.035, 0.11)):
            at = offset + 0 * gap
            drip = _segment(x, y, at, mouth_y, at, mouth_y + drop, 0.020)
            out.append(Region("blood", drip, _rgb(0.60, 0.03, 0.03), 0.0))
        scar_x = width * 0.52
        scar = _segment(x, y, scar_x, 0.08 + 0 * gap, scar_x - 0.10, 0.30 + 0 * gap, 0.014)
        out.append(Region("scar", scar, _rgb(0.40, 0.12, 0.12), 0.0))
    return out


def _worn(glasses: Tensor) -> Tensor:
    return ((glasses - 0.42) / 0.16).clamp(0, 1)


def _glasses(a: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Region]:
    """Round glasses that fade in around 0.5, so that the picture stays a continuous function of its content."""
    gap, eye_y = _eyes(a)
    worn = _worn(a["glasses"])
    reach = 0.135
    rings = torch.minimum(
        (_ellipse(x - gap, y - eye_y, reach, reach)).abs(), (_ellipse(x + gap, y - eye_y, reach, reach)).abs()
    )
    bridge = torch.maximum((y - eye_y).abs(), x.abs() - (gap - reach).clamp(min=0))
    frame = torch.minimum(rings, bridge) - 0.024
    return [Region("glasses", frame + (1 - worn) * (_PIXEL + 0.024), _rgb(0.08, 0.08, 0.10), 0.9)]


# ------------------------------------------------------------------------------------------- picture-wide finishes


def _outlines(regions: list[Region], thickness: float) -> Tensor:
    """Ink along the edges of the regions that are still visible after later ones covered them: [N, 1, H, W]."""
    ink = torch.zeros_like(regions[0].distance)
    for region in regions:
        ink = ink * (1 - _cover(region.distance))
        ink = torch.maximum(ink, region.ink * (1 - (region.distance.abs() / thickness) ** 2).clamp(min=0).sqrt())
    return ink[:, None]


def _sketch(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Dark lines and diagonal hatching on pale paper; the scene behind the person is left blank."""
    person = torch.stack([region.distance for region in regions]).amin(0)
    tone = torch.lerp(torch.ones_like(background[:, :1]), _grey(picture), _cover(person)[:, None])
    hatch = 0.5 + 0.5 * torch.sin((_X - _Y) * 34)[None, None]
    shade = (0.75 - tone).clamp(min=0) * (0.45 + 0.75 * hatch)
    ink = torch.maximum(_outlines(regions, 0.036) * 0.9, shade.clamp(max=0.85))
    return _rgb(0.97, 0.96, 0.94) * (1 - ink) + _rgb(0.20, 0.20, 0.22) * ink


def _watercolor(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Pale bleeding washes that pool at their edges, on white paper that stays bare around the border."""
    wobble = torch.stack([_cloud(11, 9)[0, 0], _cloud(12, 9)[0, 0]], -1)[None] * 0.045
    grid = torch.stack([_X, _Y], -1)[None] + wobble
    wash = _blur(picture, 1.1)
    pooled = wash - 0.9 * (_blur(wash, 2.2) - wash).clamp(min=0)
    wet = F.grid_sample(pooled, grid.expand(len(picture), -1, -1, -1), padding_mode="border", align_corners=False)
    vivid = _grey(wet) + (wet - _grey(wet)) * 1.35
    blotch = 0.62 + 0.14 * _cloud(13, 10)
    painted = 1 - (1 - vivid) * blotch.clamp(0.2, 1.0)
    edge = torch.maximum(_X.abs(), _Y.abs())[None, None] + 0.10 * _cloud(15, 8)
    bare = ((edge - 0.80) / 0.08).clamp(0, 1)
    return torch.lerp(painted, _rgb(0.98, 0.975, 0.96).expand_as(painted), bare)


def _anime(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Clean dark outlines and stronger colours."""
    vivid = (_grey(picture) + (picture - _grey(picture)) * 1.3).clamp(0, 1)
    return vivid * (1 - 0.85 * _outlines(regions, 0.030))


def _plastic(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Toy-like saturation, and a bright rim of light around the figure."""
    person = torch.stack([region.distance for region in regions]).amin(0)
    rim = torch.exp(-(((person + 0.05) / 0.035) ** 2))[:, None] * (_X > -2)
    vivid = _grey(picture) + (picture - _grey(picture)) * 1.35
    return vivid.clamp(0, 1) + 0.40 * rim * (1 - vivid.clamp(0, 1))


def _pixels(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Blocks of four pixels in a small palette."""
    vivid = (_grey(picture) + (picture - _grey(picture)) * 1.25).clamp(0, 1)
    blocks = F.avg_pool2d(vivid, 4)
    return F.interpolate(torch.round(blocks * 5) / 5, scale_factor=4.0, mode="nearest")


def _marble(picture: Tensor, regions: list[Region], background: Tensor) -> Tensor:
    """Carved edges catch a little shadow; the scene keeps its colours."""
    return picture * (1 - 0.30 * _outlines(regions, 0.030))


_FINISH: dict[str, Callable[[Tensor, list[Region], Tensor], Tensor]] = {
    "pencil sketch": _sketch,
    "watercolor painting": _watercolor,
    "3d render": _plastic,
    "anime": _anime,
    "marble statue": _marble,
    "pixel art": _pixels,
}
