"""Pasting faces back: the inverse of the alignment, masks, overlaps, colors, clips and invalid inputs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import rng
from torch import Tensor

from benchmarks.paste import HEIGHT, WIDTH, Pose, jitter, landmarks, psnr_inside, random_pose, scene
from nada_core.io.images import resize
from nada_core.latents.face_alignment import CUTS, align_faces
from nada_core.latents.face_detection import NoFaceError
from nada_core.latents.face_frame import FaceFrame, load_frames, save_frames
from nada_core.latents.face_paste import PasteConfig, paste_faces
from nada_core.latents.face_points import FacePoints, faces_from_meshes
from nada_core.latents.face_tracking import smooth_points, track_faces
from nada_core.portraits import contents

WHOLE = PasteConfig(detail=0.0)  # pastes the crop itself
SHARP = PasteConfig(feather=0.0, region="square", detail=0.0)


def outside_is_equal(result: Tensor, photo: Tensor, mask: Tensor) -> bool:
    return torch.equal(result.masked_fill(mask > 0, 0.0), photo.masked_fill(mask > 0, 0.0))


def one_face(seed: int, pose: Pose | None = None, grain: float = 0.0) -> tuple[Tensor, FacePoints]:
    person, pose = contents([seed]), pose or random_pose(rng(seed))
    return scene(person, [pose], grain, seed), landmarks(person[0], pose)


# ---- the identity edit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_unchanged_crop_gives_the_photo_back(seed: int) -> None:
    photo, points = one_face(seed)
    crops, frames = align_faces(photo, 128, [[points]])
    result, mask = paste_faces(photo, crops, frames)
    assert torch.equal(result, photo) and mask.max() == 1 and mask.min() == 0
    whole, mask = paste_faces(photo, crops, frames, WHOLE)  # resampled twice
    assert psnr_inside(whole, photo, mask) > 40 and outside_is_equal(whole, photo, mask)
    assert not torch.equal(whole, photo)
    resampled, mask = paste_faces(photo, resize(resize(crops, 300), 128), frames)
    assert psnr_inside(resampled, photo, mask) > 40 and outside_is_equal(resampled, photo, mask)


def test_fine_detail_of_the_photo_is_kept() -> None:
    photo, points = one_face(3, grain=6.4)
    crops, frames = align_faces(photo, 64, [[points]])
    edited = crops + 0.1
    kept, mask = paste_faces(photo, edited, frames)
    inside = (mask == 1).expand_as(photo) & (photo.abs() < 0.8)
    assert ((kept - photo)[inside] - 0.1).abs().max() < 1e-3
    whole, _ = paste_faces(photo, edited, frames, WHOLE)
    assert (whole - photo)[inside].std() > 0.04, "the crop of 64 pixels has no grain"


@pytest.mark.parametrize("size", [64, 100, 700])
def test_position_is_exact_for_reduced_photos_too(size: int) -> None:
    # With size 64 the photo is reduced three times before the warp; FFHQ's own reduction moves the crop by a pixel.
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    photo = (torch.exp(-((x - 330) ** 2 + (y - 250) ** 2) / 800) * 2 - 1).expand(1, 3, -1, -1)
    person, pose = contents([0]), Pose(320 + 240j, 250, 20)
    crops, frames = align_faces(photo, size, [[landmarks(person[0], pose)]])
    result, _ = paste_faces(photo, crops, frames, SHARP)
    light = (result[0, 0] + 1).double()
    assert (light * x).sum() / light.sum() == pytest.approx(330, abs=0.1)
    assert (light * y).sum() / light.sum() == pytest.approx(250, abs=0.1)


def test_face_at_the_edge_of_the_photo() -> None:
    photo, points = one_face(4, Pose(30 + 440j, 90, 25))
    crops, frames = align_faces(photo, 256, [[points]])
    assert min(min(corner) for corner in frames[0].quad) < -20, "the square reaches beyond the photo"
    assert torch.equal(paste_faces(photo, crops, frames)[0], photo)
    resampled, mask = paste_faces(photo, resize(resize(crops, 300), 256), frames)
    assert psnr_inside(resampled, photo, mask) > 40 and outside_is_equal(resampled, photo, mask)
    assert mask[0, 0, :, 0].max() > 0.9, "no soft edge where the photo ends"


def test_two_overlapping_faces() -> None:
    people, poses = contents([5, 6]), [Pose(250 + 240j, 110, -10), Pose(380 + 230j, 80, 15)]
    photo = scene(people, poses, seed=5)
    faces = [landmarks(person, pose) for person, pose in zip(people, poses, strict=True)]
    crops, frames = align_faces(photo, 256, [faces], face=None)
    assert len(crops) == len(frames) == 2
    result, mask = paste_faces(photo, crops, frames)
    assert torch.equal(result, photo)
    whole, mask = paste_faces(photo, crops, frames, WHOLE)
    assert psnr_inside(whole, photo, mask) > 40 and outside_is_equal(whole, photo, mask)
    both = [paste_faces(photo, crops[i, None], [frames[i]])[1] for i in range(2)]
    assert ((both[0] > 0) & (both[1] > 0)).any()
    assert torch.equal(mask > 0, (both[0] > 0) | (both[1] > 0))
    colored = torch.stack([torch.full((3, 32, 32), value) for value in (-1.0, 1.0)])
    for order in ((0, 1), (1, 0)):
        top, _ = paste_faces(photo, colored[list(order)], [frames[i] for i in order], WHOLE)
        assert top[:, :, both[0][0, 0] == 1].max() < -0.99, "the larger face is on top"


def test_faces_are_pasted_one_after_the_other() -> None:
    people, poses = contents([5, 6]), [Pose(200 + 240j, 90), Pose(450 + 230j, 80)]
    photo = scene(people, poses, seed=5)
    faces = [landmarks(person, pose) for person, pose in zip(people, poses, strict=True)]
    crops, frames = align_faces(photo, 128, [faces], face=None)
    together, _ = paste_faces(photo, -crops, frames)
    first, _ = paste_faces(photo, -crops[:1], frames[:1])
    assert torch.allclose(paste_faces(first, -crops[1:], frames[1:])[0], together)


# ---- masks, channels and colors -----------------------------------------------------------------------------------


def test_mask_is_soft_inside_of_its_region() -> None:
    photo, points = one_face(1)
    crops, frames = align_faces(photo, 64, [[points]])
    areas = {}
    for region in ("oval", "square"):
        _, hard = paste_faces(photo, crops, frames, PasteConfig(region=region, feather=0.0))
        _, soft = paste_faces(photo, crops, frames, PasteConfig(region=region, feather=0.2))
        assert set(hard.unique().tolist()) == {0.0, 1.0}
        assert ((soft > 0) <= (hard > 0)).all() and ((soft > 0.1) & (soft < 0.9)).any()
        areas[region] = hard.sum() / frames[0].side ** 2
    assert areas["oval"] == pytest.approx(math.pi / 4 * 0.92 * 0.98, rel=0.02)
    assert areas["square"] == pytest.approx(1 - (4 - math.pi) / 4 * 0.4**2, rel=0.02)


def test_alpha_of_the_photo_is_kept() -> None:
    photo, points = one_face(2)
    alpha = torch.rand(1, 1, HEIGHT, WIDTH, generator=rng(0)) * 2 - 1
    crops, frames = align_faces(photo, 64, [[points]])
    result, _ = paste_faces(torch.cat([photo, alpha], 1), -crops, frames)
    assert torch.equal(result[:, 3:], alpha)
    assert torch.equal(result[:, :3], paste_faces(photo, -crops, frames)[0])


def test_alpha_of_the_crop_limits_the_mask() -> None:
    photo, points = one_face(2)
    crops, frames = align_faces(photo, 64, [[points]])
    alpha = torch.ones(1, 1, 64, 64)
    alpha[..., 32:] = -1  # the right half is transparent
    result, mask = paste_faces(photo, torch.cat([-crops, alpha], 1), frames)
    _, full = paste_faces(photo, -crops, frames)
    assert mask.sum() == pytest.approx(full.sum().item() / 2, rel=0.05) and outside_is_equal(result, photo, mask)


def test_color_match_undoes_a_change_of_light() -> None:
    photo, points = one_face(8)
    photo = photo * 0.5 - 0.2
    crops, frames = align_faces(photo, 256, [[points]])
    gains = torch.tensor([1.3, 0.8, 0.4]).view(1, 3, 1, 1)
    linear = ((crops + 1) / 2) ** 2.4 * gains
    tinted = (linear ** (1 / 2.4)).clamp(0, 1) * 2 - 1
    off, mask = paste_faces(photo, tinted, frames)
    on, _ = paste_faces(photo, tinted, frames, PasteConfig(color_match=1.0))
    assert psnr_inside(off, photo, mask) < 28 and psnr_inside(on, photo, mask) > 40


def test_crops_of_any_size_are_pasted() -> None:
    photo, points = one_face(9)
    _, frames = align_faces(photo, 256, [[points]])
    for size in (16, 40, 999):
        result, mask = paste_faces(photo, torch.full((1, 3, size, size), 0.25), frames, WHOLE)
        assert torch.allclose(result[mask.expand_as(result) == 1], torch.tensor(0.25), atol=1e-5)


def test_several_crops_of_one_face_give_several_photos() -> None:
    photo, points = one_face(9)
    crops, frames = align_faces(photo, 64, [[points]])
    result, mask = paste_faces(photo, torch.cat([crops, -crops]), frames)
    assert len(result) == len(mask) == 2 and torch.equal(result[:1], photo)
    assert torch.equal(result[1:], paste_faces(photo, -crops, frames)[0])


def test_inputs_are_not_changed() -> None:
    photo, points = one_face(9)
    crops, frames = align_faces(photo, 64, [[points]])
    before, edited = photo.clone(), -crops
    paste_faces(photo, edited, frames, PasteConfig(color_match=0.5))
    assert torch.equal(photo, before) and torch.equal(edited, -crops)


def test_middle_of_the_photo_is_pasted_back() -> None:
    photo = scene(contents([1]), [Pose(320 + 240j, 150)])
    crops, frames = align_faces(photo, 64, what=CUTS[2])
    assert frames[0].quad == ((79.5, -0.5), (79.5, 479.5), (559.5, 479.5), (559.5, -0.5))
    assert torch.equal(paste_faces(photo, crops, frames)[0], photo)
    gray, _ = align_faces(photo[:, :1], 64, what=CUTS[2])
    assert gray.shape == (1, 3, 64, 64)


# ---- frames -------------------------------------------------------------------------------------------------------


def test_frames_are_saved_and_loaded(tmp_path: Path) -> None:
    photo, points = one_face(1)
    _, frames = align_faces(photo.expand(2, -1, -1, -1), 64, [[points], [points]])
    assert [frame.image for frame in frames] == [0, 1]
    assert load_frames(save_frames(frames, tmp_path / "face.json")) == frames
    for text in ("", "{}", "[]", '{"kind": "nada_face_frames", "version": 2, "frames": []}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="x.json"):
            load_frames(tmp_path / "x.json")
    with pytest.raises(ValueError, match="absent.json"):
        load_frames(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"center": (math.nan, 1.0)}, "nan"),
        ({"right": (1.0, 2.0, 3.0)}, "right"),
        ({"size": 8}, "size 8"),
        ({"image": -1}, "image -1"),
        ({"center": (2000.0, 10.0)}, "around 2000"),
        ({"right": (3.0, 0.0)}, "of 6 pixels"),
    ],
)
def test_invalid_frames_are_refused(changes: dict[str, object], value: str) -> None:
    frame = FaceFrame((100.0, 100.0), (40.0, 5.0), 64, 300, 200)
    with pytest.raises(ValueError, match=value):
        replace(frame, **changes)


def test_wrong_photos_and_numbers_are_refused() -> None:
    photo, points = one_face(1)
    crops, frames = align_faces(photo, 64, [[points]])
    other, _ = one_face(2)
    for photos, faces, given, value in (
        (photo[:, :, :, 1:], crops, frames, "639 x 480 pixels, expected 640 x 480"),
        (other, crops, frames, "another photo"),
        (photo.expand(2, -1, -1, -1), crops.expand(3, -1, -1, -1), frames, "3 crops and 1 frames"),
        (photo, crops, [replace(frames[0], image=1)], "photo 1, but got 1"),
        (photo, crops[..., 1:], frames, "63 x 64"),
        (photo[:, :1], crops, frames, "1, 1, 480, 640"),
    ):
        with pytest.raises(ValueError, match=value):
            paste_faces(photos, faces, given)


# ---- several photos and clips -------------------------------------------------------------------------------------


def test_faces_of_several_photos_are_aligned() -> None:
    (first, a), (second, b) = one_face(1), one_face(2)
    photos = torch.cat([first, second])
    crops, frames = align_faces(photos, 64, [[a], [b, a]], face=None)
    assert len(crops) == 3 and [frame.image for frame in frames] == [0, 1, 1]
    result, mask = paste_faces(photos, -crops, frames)
    assert torch.equal(result[:1], paste_faces(first, -crops[:1], frames[:1])[0])
    with pytest.raises(NoFaceError, match="Photo 0: .*face 1"):
        align_faces(photos, 64, [[a], [b, a]], face=1)
    with pytest.raises(NoFaceError, match="Photo 1: .*640 x 480"):
        align_faces(photos, 64, [[a], []])
    assert align_faces(photos, 64, [[a], []], what=CUTS[1])[1][1].is_middle
    with pytest.raises(ValueError, match="points of 1 photos for 2"):
        align_faces(photos, 64, [[a]])


def test_smoothing_lowers_the_flicker_of_a_still_face() -> None:
    photo, points = one_face(7, Pose(320 + 240j, 120, 8))
    clip, moved = photo.expand(24, -1, -1, -1), jitter(points, 24, 1.0, seed=3)
    edited = torch.rand(1, 3, 64, 64, generator=rng(1)).expand(24, -1, -1, -1)  # the generator draws a still face
    flicker = {}
    for sigma in (0.0, 3.0):
        _, frames = align_faces(clip, 64, [[one] for one in moved], smoothing=sigma)
        result, _ = paste_faces(clip, edited, frames, WHOLE)
        flicker[sigma] = result.std(0).mean().item()
    assert 0 < flicker[3.0] < 0.5 * flicker[0.0]


def test_steady_motion_is_followed_without_lag() -> None:
    _, points = one_face(7)
    track = [shifted(points, 3.0 * index) for index in range(12)]
    gap = [None if index in (4, 5) else face for index, face in enumerate(track)]
    for face, expected in zip(smooth_points(gap, 2.0), track, strict=True):
        assert face.left_eye == pytest.approx(expected.left_eye) and face.nose is None
    with pytest.raises(NoFaceError, match="frame 10"):
        smooth_points([*track[:4], *[None] * 8], 2.0)


def test_faces_are_followed_when_their_sizes_swap() -> None:
    _, points = one_face(7, Pose(200 + 200j, 80))
    left, right = [shifted(points, 0.5 * index) for index in range(4)], [shifted(points, 300.0)] * 4
    tracks = track_faces([[], [left[0], right[0]], [right[1], left[1]], [right[2]], [left[3], right[3]]])
    assert tracks == [[None, left[0], left[1], None, left[3]], [None, *right]]
    assert track_faces([[], []]) == []


def shifted(points: FacePoints, x: float) -> FacePoints:
    return FacePoints(*((point[0] + x, point[1]) for point in vars(points).values()))


def test_face_meshes_of_mediapipe_become_points() -> None:
    mesh = torch.zeros(478, 2)
    for indices, at in (
        ((33, 160, 158, 133, 153, 144), (100.0, 100.0)),
        ((362, 385, 387, 263, 373, 380), (160.0, 100.0)),
        ((1,), (130.0, 130.0)),
        ((61,), (110.0, 160.0)),
        ((291,), (150.0, 160.0)),
    ):
        mesh[list(indices)] = torch.tensor(at)
    mesh[33, 0], mesh[133, 0] = 94.0, 106.0
    (face,) = faces_from_meshes([mesh])
    assert face == FacePoints((100, 100), (160, 100), (130, 130), (110, 160), (150, 160))
    larger, smaller = faces_from_meshes([mesh, mesh * 2])
    assert larger.left_eye == (200, 200) and smaller == face
    assert faces_from_meshes([mesh * torch.tensor([1.0, -1.0])]) == []
    with pytest.raises(ValueError, match="70 landmarks"):
        faces_from_meshes([mesh[:70]])
