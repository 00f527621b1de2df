"""FFHQ alignment of photos: positions of eyes and mouth, padding, points and the detector."""

from __future__ import annotations

import cmath
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import rng
from torch import Tensor

from nada_core.latents.face_alignment import align
from nada_core.latents.face_detection import NoFaceError, find_face, find_faces
from nada_core.latents.face_points import FacePoints

SIZE = 256
# Eyes 60 apart and a mouth 60 below them: the square is 240 wide, its center 6 below the eyes (appendix A).
MODEL = {"left_eye": -30 + 0j, "right_eye": 30 + 0j, "nose": 35j, "left_mouth": -22 + 60j, "right_mouth": 22 + 60j}
EXPECTED = {"left_eye": (0.375, 0.475), "right_eye": (0.625, 0.475), "mouth": (0.5, 0.725)}


def placed(middle: complex = 200 + 180j, scale: float = 1.0, degrees: float = 0.0) -> FacePoints:
    """The face of MODEL after a similarity transform that moves the point between the eyes to `middle`."""
    turn = scale * cmath.exp(1j * math.radians(degrees))
    points = {name: middle + turn * point for name, point in MODEL.items()}
    return FacePoints(**{name: (point.real, point.imag) for name, point in points.items()})


def dotted(points: FacePoints, height: int = 420, width: int = 400) -> Tensor:
    """A black photo with a soft dot for each eye and the mouth, each in its own channel."""
    mouth = tuple((a + b) / 2 for a, b in zip(points.left_mouth, points.right_mouth, strict=True))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dots = [torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 32) for at in (points.left_eye, points.right_eye, mouth)]
    return torch.stack(dots)[None] * 2 - 1


def centroids(face: Tensor) -> dict[str, tuple[float, float]]:
    """Locate the dots of `dotted` near the expected positions."""
    result = {}
    for channel, (name, at) in zip(face[0] + 1, EXPECTED.items(), strict=True):
        left, top = (round(part * face.shape[-1]) - 24 for part in at)
        window = channel[top : top + 48, left : left + 48].double()
        line = torch.arange(48, dtype=torch.float64)
        total = window.sum()
        result[name] = (left + (window.sum(0) @ line / total).item(), top + (window.sum(1) @ line / total).item())
    return result


def photo(height: int = 420, width: int = 400) -> Tensor:
    coarse = torch.rand(1, 3, 12, 12, generator=rng(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


# ---- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_alignment_is_independent_of_rotation_and_scale(seed: int) -> None:
    drawn = torch.rand(4, generator=rng(seed)).tolist()
    points = placed(complex(190 + 20 * drawn[0], 170 + 20 * drawn[1]), 0.5 + 0.5 * drawn[2], 80 * drawn[3] - 40)
    face = align(dotted(points), points, SIZE)
    assert face.shape == (1, 3, SIZE, SIZE) and face.dtype == torch.float32
    for name, result in centroids(face).items():
        # Positions are relative to the corner of the square, and pixel centers are half a pixel from it.
        assert result == pytest.approx([part * SIZE - 0.5 for part in EXPECTED[name]], abs=0.5), name


def test_large_photos_are_reduced_first() -> None:
    points = placed(800 + 700j, 4, 15)
    y, x = torch.meshgrid(torch.arange(1700), torch.arange(1600), indexing="ij")
    stripes = torch.where((x + y) % 2 == 0, 1.0, -1.0).expand(1, 3, -1, -1)  # finer than the resolution of the result
    assert align(stripes, points, 64).abs().mean() < 0.02
    big = dotted(points, 1700, 1600)
    for name, result in centroids(align(big, points, SIZE)).items():
        assert result == pytest.approx([part * SIZE - 0.5 for part in EXPECTED[name]], abs=0.5), name


def test_alignment_is_independent_of_the_output_size() -> None:
    points = placed(degrees=10)
    small = torch.nn.functional.interpolate(align(photo(), points, 512), (128, 128), mode="area")
    assert (small - align(photo(), points, 128)).abs().mean() < 0.01


def test_inputs_are_not_changed() -> None:
    image = photo()
    original = image.clone()
    align(image, placed(40 + 40j), 64)
    assert torch.equal(image, original)


# ---- padding ------------------------------------------------------------------------------------------------------


def test_face_in_the_corner_is_aligned() -> None:
    points = placed(60 + 50j, 1, 25)
    for name, result in centroids(align(dotted(points), points, SIZE)).items():
        assert result == pytest.approx([part * SIZE - 0.5 for part in EXPECTED[name]], abs=0.5), name


def test_padding_keeps_the_inside_of_the_photo() -> None:
    large = photo(600, 600)
    whole = align(large, placed(300 + 300j), SIZE)
    cut = align(large[:, :, 250:, 250:], placed(50 + 50j), SIZE)
    # 70 pixels of the square's 240 are missing on the left, 64 above; with its border of 24 and a third of both, which
    # softens the seam, that makes 102. The way down to the result's size reaches a little farther, at the far edge too.
    inside = slice(SIZE * 102 // 240 + 4, -4)
    assert torch.allclose(cut[:, :, inside, inside], whole[:, :, inside, inside], atol=1e-6)
    assert not torch.equal(cut, whole) and cut.std() > 0.1

    plain = torch.tensor([0.2, -0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    assert torch.allclose(align(plain, placed(10 + 10j), 64), plain[:, :, :64, :64], atol=1.5 / 127.5)


def test_padding_far_outside_is_the_median_color() -> None:
    picture = torch.full((1, 3, 100, 100), 0.5)
    picture[:, :, :, :30] = -0.5
    face = align(picture, placed(50 + 50j, 1.2), SIZE)
    edges = torch.cat([face[0, :, :3].flatten(), face[0, :, -3:].flatten()])
    assert (edges - 0.5).abs().mean() < 0.15 and face.min() < -0.4


# ---- manual points ------------------------------------------------------------------------------------------------


def test_points_are_read_from_text() -> None:
    four = FacePoints.parse("120,150  180,150.5\n125,220; 175,220")
    assert four == FacePoints((120, 150), (180, 150.5), None, (125, 220), (175, 220))
    assert FacePoints.parse("120,150 180,150.5 150,190 125,220 175,220").nose == (150, 190)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "120,150",
        "1 2 3 4",
        "a,b c,d e,f g,h",
        "1,2,3 4,5 6,7 8,9",
        "120,nan 180,150 125,220 175,220",
        "120,150 180,150 125,220 175,220 150,190",
    ],
)
def test_invalid_points_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Got .* expected"):
        FacePoints.parse(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"right_eye": (170.0, 180.0)}, "coincide"),
        ({"left_mouth": (170.0, 180.0), "right_mouth": (230.0, 180.0)}, "coincide"),
        ({"left_mouth": (100.0, 181.0), "right_mouth": (110.0, 181.0)}, "not below"),
        ({"left_eye": (230.0, 180.0), "right_eye": (170.0, 180.0)}, "mouth that is not below"),
        ({"left_mouth": (180.0, 90.0), "right_mouth": (220.0, 90.0)}, "not below"),
        ({"nose": (math.inf, 0.0)}, "nose, expected two finite"),
        ({"left_eye": (1.0, 2.0, 3.0)}, "left_eye, expected two finite"),
    ],
)
def test_degenerate_points_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FacePoints(**{**vars(placed()), **changes})


# ---- invalid inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [lambda image: align(image, placed(), 64), find_faces])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 400, 400), r"\[1, 4, 400, 400\], expected"),
        (torch.zeros(2, 3, 400, 400), "one by one"),
        (torch.zeros(3, 400, 400), r"\[3, 400, 400\], expected"),
        (torch.zeros(1, 3, 1, 1), "1 x 1 pixels, expected at least 16"),
        (torch.full((1, 3, 400, 400), math.nan), "NaN"),
        (torch.full((1, 3, 400, 400), 200.0), "200, expected -1..1"),
    ],
)
def test_invalid_photos_are_refused(take: Callable[[Tensor], object], image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(image)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (placed(2000 + 100j), "around 2000, .* 400 x 420"),
        (placed(0.5 + 0.4j, 0.002), "0.48 pixels"),
        (placed(200 + 100j, 20), "expected 16 to 1680"),
    ],
)
def test_points_outside_the_photo_are_refused(points: FacePoints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align(photo(), points, 64)


def test_too_small_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="Got size 8, expected at least 16"):
        align(photo(), placed(), 8)


# ---- the detector -------------------------------------------------------------------------------------------------


def rows(*faces: FacePoints, frame: complex = 100 + 105j) -> tuple[list[list[float]], list[list[float]]]:
    """The output of the detector for faces in `photo()`, which is padded by a quarter on each side."""
    boxes, marks = [], []
    for face in faces:
        five = [complex(*point) + frame for point in vars(face).values()]
        side = abs(five[1] - five[0])
        boxes.append([five[2].real - side, five[2].imag - side, five[2].real + side, five[2].imag + side, 0.99])
        marks.append([*(point.real for point in five), *(point.imag for point in five)])
    return boxes, marks


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the module of the detector: returns `answer` and stores the image in `shown`."""
    stand_in = SimpleNamespace(answer=([], []), shown=None)

    def detect(image: Any, min_face_size: float, thresholds: list[float]) -> Any:
        stand_in.shown = image
        if isinstance(stand_in.answer, Exception):
            raise stand_in.answer
        return stand_in.answer

    stand_in.MTCNN = lambda: SimpleNamespace(detect=detect)
    monkeypatch.setitem(sys.modules, "mtcnnruntime", stand_in)
    return stand_in


def test_faces_are_sorted_by_size(detector: SimpleNamespace) -> None:
    small, large = placed(100 + 100j, 0.4), placed(250 + 200j, 1, -10)
    detector.answer = rows(small, large)
    result = find_faces(photo())
    assert len(result) == 2
    for face, expected in zip(result, (large, small), strict=True):
        for name, point in vars(expected).items():
            assert getattr(face, name) == pytest.approx(point), name
    assert find_face(photo(), 1) == result[1]
    with pytest.raises(NoFaceError, match="face 2, but the picture has 2: expected 0 to 1"):
        find_face(photo(), 2)
    with pytest.raises(NoFaceError, match="face -1"):
        find_face(photo(), -1)


def test_detector_gets_bgr_bytes(detector: SimpleNamespace) -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 40, 80)
    assert find_faces(red) == []
    assert detector.shown.shape == (60, 120, 3) and detector.shown.dtype.name == "uint8"
    assert detector.shown.reshape(-1, 3).min(0).tolist() == [0, 0, 255]


def test_image_without_a_face_is_refused(detector: SimpleNamespace) -> None:
    message = "no face in the picture of 400 x 420 pixels.*five points by hand.*middle of the picture"
    for answer in (([], []), ValueError("need at least one array to concatenate")):
        detector.answer = answer
        assert find_faces(photo()) == []
        with pytest.raises(NoFaceError, match=message):
            find_face(photo())
    detector.answer = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        find_faces(photo())


def test_implausible_points_are_no_face(detector: SimpleNamespace) -> None:
    boxes, marks = rows(placed())
    detector.answer = (boxes, [[0.0] * 10])
    assert find_faces(photo()) == []


def test_small_uncertain_face_beside_a_large_one_is_left_out(detector: SimpleNamespace) -> None:
    pattern, face = placed(100 + 100j, 0.2), placed(250 + 200j)
    boxes, marks = rows(pattern, face)
    detector.answer = (boxes, marks)
    boxes[0][4] = 0.99
    assert len(find_faces(photo())) == 2
    boxes[0][4] = 0.95
    assert [found.nose for found in find_faces(photo())] == [pytest.approx(face.nose)]
    detector.answer = rows(placed(100 + 100j, 0.8), face)
    detector.answer[0][0][4] = 0.95
    assert len(find_faces(photo())) == 2, "of about the same size"


def test_missing_detector_error_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtcnnruntime", None)
    with pytest.raises(ValueError, match="pip install mtcnn-runtime.*five points by hand.*middle of the picture"):
        find_face(photo())


def test_detector_finds_a_face_and_none_in_a_cup_of_coffee() -> None:
    pytest.importorskip("mtcnnruntime")
    data = pytest.importorskip("skimage.data")
    astronaut, coffee = (
        torch.from_numpy(picture()).permute(2, 0, 1)[None] / 127.5 - 1 for picture in (data.astronaut, data.coffee)
    )
    face = find_face(astronaut)
    assert face.left_eye == pytest.approx((204, 101), abs=4) and face.right_eye == pytest.approx((247, 103), abs=4)
    mirrored = find_face(astronaut.flip(-1))
    assert mirrored.right_eye == pytest.approx((511 - 204, 101), abs=4)
    with pytest.raises(NoFaceError):
        find_face(coffee)
