"""The nodes for photos, editing and latent files, in a test double of ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated_encoder import content, face_state
from host.executor import Refused
from pack_world import World
from torch import Tensor

from nada_core.io.metadata import write_torch

SHORT = {"steps": 4, "lpips": 0.0, "id": 0.0}
NAMES = ("InvertImage", "PivotalTuning", "EditByText")


def photos(count: int = 2, side: int = 70, channels: int = 3) -> Tensor:
    """A smooth ComfyUI IMAGE, which can be inverted."""
    rng = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, channels, 5, 5, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(side, side + 6), mode="bilinear").permute(0, 2, 3, 1)


def settings_of(world: World) -> dict[str, Any]:
    core = world.core
    return {"InvertImage": core.InvertConfig, "PivotalTuning": core.TuneConfig, "EditByText": core.TextEditConfig}


# ---- widgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_widgets_with_the_same_limits(world: World, name: str) -> None:
    widgets = {key.partition(".")[2] or key: spec for key, spec in world.widgets(name).items()}
    for item in world.module("nada_core.runtime.config").describe(settings_of(world)[name]):
        assert item.name in widgets, f"{name} has no widget for {item.name}: put it to the end"
        kind, options = widgets[item.name]
        automatic = item.name != "seed"  # -1 and "automatic" keep the generator's own setting
        if kind in ("INT", "FLOAT"):
            assert options["min"] == (-1 if automatic or item.optional else item.low), item.name
            assert options["max"] == (2**31 - 1 if item.high is None else item.high), item.name
        if kind == "COMBO":
            choices = [*(item.choices or ("on", "off"))]
            assert options["options"] == ["automatic"] * automatic + choices, item.name
        default = (-1 if kind in ("INT", "FLOAT") else "automatic") if automatic else item.default
        assert options["default"] == (-1 if default is None else default), item.name


def test_builtin_settings_fit_the_widgets(world: World) -> None:
    from nada_core.portraits import INVERT, TUNE

    for name, settings in (("InvertImage", INVERT), ("PivotalTuning", TUNE)):
        for key, (kind, options) in world.widgets(name).items():
            if kind == "FLOAT":
                value = getattr(settings, key.partition(".")[2])
                ticks = value / options["round"]
                assert abs(ticks - round(ticks)) < 1e-6 and options["min"] <= value <= options["max"]


def test_default_widgets_give_the_recommended_settings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from nada_core.portraits import INVERT, TUNE

    taken = []

    def capture(source: Any, images: Any, config: Any, *_: Any, **__: Any) -> None:
        taken.append(config)
        raise ValueError("captured")

    monkeypatch.setattr(world.module("nodes.photos"), "invert", capture)
    monkeypatch.setattr(
        world.module("nodes.photos"), "tune", lambda source, images, latents, *more, **_: capture(source, images, *more)
    )
    (similarity_networks,) = world.call("LoadLikeness", identity="portraits")
    given = {"generator": world.generator, "image": photos(1)}
    for name, more in (("InvertImage", {}), ("PivotalTuning", {"latents": world.latents(1)})):
        for values in (
            {"similarity_networks": similarity_networks},
            {"similarity_networks": similarity_networks, "settings": "by hand"},
            {},
        ):
            with pytest.raises(ValueError, match="captured"):
                world.call(name, **given, **more, **values)
    assert [repr(config) for config in taken[:2]] == [repr(INVERT)] * 2
    assert taken[2].id == 0.0, "without a network its loss is not used"
    assert [repr(config) for config in taken[3:]] == [repr(TUNE)] * 3


# ---- photos -------------------------------------------------------------------------------------------------------


def test_invert_then_pivotal_tuning(either: World) -> None:
    (drawn,) = either.call("DrawPortrait", seed=2, count=2)
    assert drawn.shape == (2, 64, 64, 3)
    (alone,) = either.call("DrawPortrait", seed=3, count=1)
    assert torch.equal(drawn[1:], alone), "a seed is the same person in any batch"
    (similarity_networks,) = either.call("LoadLikeness", identity="portraits")
    given = {"generator": either.generator, "image": drawn, "similarity_networks": similarity_networks}
    latents, inverted, report = either.call(
        "InvertImage", **given, **SHORT | {"steps": 12, "id": 0.1, "optimize_noise": "off"}
    )
    assert latents.ws.shape == (2, 10, 64) and inverted.shape == drawn.shape
    assert report.splitlines()[1].startswith("picture 1: ") and "dB, after 12 steps" in report
    assert either.host.bars[-1].total == 24
    tuned, domain, rendered, report = either.call("PivotalTuning", **given, latents=latents, **SHORT | {"lr": 0.006})
    assert (rendered - drawn).abs().mean() < (inverted - drawn).abs().mean() and "picture 0: " in report
    (again,) = either.call("ApplyDomain", generator=either.generator, domain=domain, strength=1.0)
    (first,), (second,) = (either.call("Render", generator=one, latents=latents) for one in (tuned, again))
    assert torch.allclose(first, second, atol=1e-4)
    adapted, _, _ = either.trained
    (carried,) = either.call("ApplyDomain", generator=adapted, domain=domain, strength=1.0)
    assert either.call("Render", generator=carried, latents=latents)[0].shape == drawn.shape


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_invert_accepts_any_number_of_channels(world: World, channels: int) -> None:
    latents, inverted, _ = world.call(
        "InvertImage", generator=world.generator, image=photos(1, 40, channels), **SHORT | {"optimize_noise": "off"}
    )
    assert len(latents) == 1 and inverted.shape == (1, 64, 64, 3)


def test_invert_starts_from_given_latents(world: World) -> None:
    begin = world.latents(2)
    image = world.call("Render", generator=world.generator, latents=begin)[0]
    latents, _, report = world.call(
        "InvertImage",
        generator=world.generator,
        image=image,
        start=begin,
        **SHORT | {"optimize_noise": "off", "space": "w+", "stop_psnr": 35.0},
    )
    assert "after 1 steps" in report and (latents.ws - begin.ws).abs().max() < 1e-4


def test_inversion_and_tuning_can_be_cancelled(world: World) -> None:
    given = {"generator": world.generator, "image": photos(1), **SHORT}
    for name, more in (("InvertImage", {"optimize_noise": "off"}), ("PivotalTuning", {"latents": world.latents(1)})):
        world.host.interrupt_after(12)
        with pytest.raises(world.host.InterruptProcessingException):
            world.call(name, **given, **more)


def test_align_face_by_points_or_center(world: World) -> None:
    image = photos(1, 120)
    points = "40,50 80,50 60,65 45,85 75,85"
    face, _ = world.call("AlignFace", image=image, size=32, points=points)
    assert face.shape == (1, 32, 32, 3)
    middle, _ = world.call("AlignFace", image=photos(2, 120), size=32, cut="the middle")
    assert middle.shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="left eye"):
        world.call("AlignFace", image=image, size=32, points="nonsense")


def test_align_face_without_a_face(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = world.module("nada_core.latents.face_alignment")
    monkeypatch.setattr(faces, "find_faces", lambda image: [])
    with pytest.raises(ValueError, match="126 x 120"):
        world.call("AlignFace", image=photos(1, 120), size=32)
    middle, _ = world.call("AlignFace", image=photos(1, 120), size=32, cut="the face, else the middle")
    assert torch.allclose(middle, world.call("AlignFace", image=photos(1, 120), size=32, cut="the middle")[0])


def test_invalid_photos_are_rejected(world: World) -> None:
    given = {"generator": world.generator, **SHORT, "optimize_noise": "off"}
    with pytest.raises(ValueError, match="1 x 1"):
        world.call("InvertImage", image=torch.rand(1, 1, 1, 3), **given)
    with pytest.raises(ValueError, match="NaN or infinity"):
        world.call("InvertImage", image=torch.full((1, 64, 64, 3), torch.nan), **given)
    with pytest.raises(ValueError, match=r"lpips.*0\.8"):
        world.call("InvertImage", image=photos(1), **given | {"lpips": 0.8})
    with pytest.raises(ValueError, match="another generator"):
        world.call(
            "PivotalTuning",
            generator=world.generator,
            image=photos(2),
            **SHORT,
            latents=world.latents(2, generator=world.stranger),
        )
    with pytest.raises(Refused, match="steps"):
        world.call("InvertImage", image=photos(1), **given | {"steps": -2})
    with pytest.raises(ValueError, match="Got steps 0"):
        world.call("InvertImage", image=photos(1), **given | {"steps": 0})


# ---- networks from files ------------------------------------------------------------------------------------------


def put(world: World, *path: str, state: Any) -> None:
    place = world.host.models_dir.joinpath("stylegan_nada", *path)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_torch(place, state)


def test_load_encoder_outputs_encoder_and_generator(world: World) -> None:
    put(world, "encoders", "e4e.pt", state=content("e4e"))
    encoder, generator = world.call("LoadEncoder", file="e4e.pt")
    assert generator.resolution == 32
    (latents,) = world.call("EncodeImage", encoder=encoder, image=photos(2))
    assert latents.space == generator.space() and len(latents) == 2
    assert world.call("Render", generator=generator, latents=latents)[0].shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="mapping network"):
        world.call("EncodeImage", encoder=encoder, image=photos(1), generator=world.generator)


def test_load_likeness_selects_networks(world: World) -> None:
    put(world, "identity", "model_ir_se50.pth", state=face_state())
    perceptual, identity = world.call("LoadLikeness", perceptual="squeeze:random", identity="model_ir_se50.pth")[0]
    assert perceptual.relative and identity.name == "model_ir_se50"
    assert world.call("LoadLikeness") == ((None, None),)
    with pytest.raises(Refused, match="absent.pth"):
        world.call("LoadLikeness", identity="absent.pth")
    given = {"generator": world.generator, "image": photos(1), "similarity_networks": (perceptual, identity)}
    _, _, report = world.call("InvertImage", **given, **SHORT | {"lpips": 0.5, "id": 0.1, "optimize_noise": "off"})
    assert "LPIPS (untrained trunk, relative only)" in report


# ---- editing ------------------------------------------------------------------------------------------------------


def test_find_and_edit_directions(either: World) -> None:
    latents = either.latents(2)
    directions, names = either.call("FindDirections", generator=either.generator, count=3)
    assert names.splitlines() == list(directions.names) and len(directions) == 3
    (by_number,) = either.call("EditLatents", latents=latents, directions=directions, direction="1", strength=2.0)
    (by_name,) = either.call(
        "EditLatents", latents=latents, directions=directions, direction=names.split("\n")[1], strength=2.0
    )
    assert torch.equal(by_number.ws, by_name.ws) and not torch.equal(by_number.ws, latents.ws)
    (some,) = either.call("EditLatents", latents=latents, directions=directions, strength=2.0, from_row=2, to_row=4)
    moved = (some.ws - latents.ws).abs().sum((0, 2)) > 0
    assert moved.tolist() == [False, False, True, True] + [False] * 6
    (each,) = either.call(
        "EditLatents", latents=latents, directions=directions, strength=2.0, per_row="0, 0, 1, 1, 0 0 0 0 0 0"
    )
    assert torch.allclose(each.ws, some.ws)
    for wrong, value in (
        ({"direction": "smile"}, "'smile'"),
        ({"direction": "3"}, "'3'"),
        ({"per_row": "0 a"}, "'0 a'"),
        ({"per_row": "1 2"}, "10"),
    ):
        with pytest.raises(ValueError, match=value):
            either.call("EditLatents", latents=latents, directions=directions, **wrong)
    pca, _ = either.call("FindDirections", generator=either.generator, method="PCA", count=2, from_row=0, to_row=3)
    assert pca.vectors.shape == (2, 10, 64) and pca.vectors[:, 3:].abs().max() == 0


def test_edit_by_text(world: World) -> None:
    (shift,) = world.call("ShiftFromText", source="photo", target="photo with glasses", wording="bare")
    latents = world.latents(2)
    given = {"generator": world.generator, "latents": latents, "guide": world.guide, "shift": shift}
    (edited,) = world.call("EditByText", **given, steps=2)
    assert edited.space == latents.space and not torch.equal(edited.ws, latents.ws)
    (similarity_networks,) = world.call("LoadLikeness", identity="portraits")
    (with_identity,) = world.call("EditByText", **given, steps=2, similarity_networks=similarity_networks, id=1.0)
    assert not torch.equal(with_identity.ws, edited.ws)
    with pytest.raises(ValueError, match="id"):
        world.call("EditByText", **given, steps=2, id=1.0)


# ---- shelves ------------------------------------------------------------------------------------------------------


def test_latents_and_directions_save_load_round_trip(world: World) -> None:
    latents = world.latents(3)
    (path,) = world.call("SaveLatents", latents=latents)
    assert Path(path).parent == world.host.output / "stylegan_nada" / "latents"
    (read,) = world.call("LoadLatents", generator=world.generator, file=Path(path).name)
    assert torch.equal(read.ws, latents.ws)
    directions, _ = world.call("FindDirections", generator=world.generator, count=2)
    (path,) = world.call("SaveDirections", directions=directions)
    again, names = world.call("LoadDirections", generator=world.generator, file=Path(path).name)
    assert torch.equal(again.vectors, directions.vectors) and names.splitlines() == list(directions.names)
    assert not any("latents" in name for name in world.widgets("LoadGenerator")["file"][1]["options"])
    (path,) = world.call("SaveLatents", latents=latents)
    with pytest.raises(ValueError, match="another generator"):
        world.call("LoadLatents", generator=world.stranger, file=Path(path).name)


def test_empty_file_lists_have_a_placeholder(world: World) -> None:
    for name, kind in (("LoadLatents", "latents"), ("LoadDirections", "directions"), ("LoadEncoder", "encoder")):
        (only,) = world.widgets(name)["file"][1]["options"]
        assert only == f"(no {kind} found)"
        with pytest.raises(Refused, match="was not found"):
            world.call(name, **({} if name == "LoadEncoder" else {"generator": world.generator}))


# ---- faces pasted back --------------------------------------------------------------------------------------------

POINTS = "40,50 80,50 60,65 45,85 75,85"


def test_paste_face_keeps_pixels_outside_of_the_mask(either: World) -> None:
    image = photos(2, 120, channels=4)
    faces, frames = either.call("AlignFace", image=image, size=32, points=POINTS)
    pasted, mask = either.call("PasteFace", image=image, faces=1 - faces, frames=frames)
    assert pasted.shape == image.shape and mask.shape == image.shape[:3]
    changed = (pasted != image).any(-1)
    assert changed.any() and not (changed & (mask == 0)).any()
    assert torch.equal(pasted[..., 3], image[..., 3])
    same, _ = either.call("PasteFace", image=image, faces=faces, frames=frames)
    assert torch.allclose(same, image, atol=1e-6)


def test_paste_face_gives_a_photo_for_every_version_of_a_face(world: World) -> None:
    image = photos(1, 120)
    faces, frames = world.call("AlignFace", image=image, size=32, points=POINTS)
    pasted, mask = world.call("PasteFace", image=image, faces=torch.cat([faces, 1 - faces]), frames=frames)
    assert len(pasted) == len(mask) == 2 and torch.allclose(pasted[:1], image, atol=1e-6)


def test_paste_face_refuses_other_photos(world: World) -> None:
    image = photos(1, 120)
    faces, frames = world.call("AlignFace", image=image, size=32, points=POINTS)
    for other, value in ((image[:, 1:], "126 x 119"), (1 - image, "another photo")):
        with pytest.raises(ValueError, match=value):
            world.call("PasteFace", image=other, faces=faces, frames=frames)


def test_align_face_takes_all_faces_and_landmarks(world: World) -> None:
    image = photos(1, 120)
    both = f"{POINTS} / 20,30 40,30 22,45 38,45"
    assert len(world.call("AlignFace", image=image, size=32, points=both, face=-1)[0]) == 2
    first, second = (world.call("AlignFace", image=image, size=32, points=both, face=index)[0] for index in (0, 1))
    assert not torch.equal(first, second)
    alone, _ = world.call("AlignFace", image=image, size=32, points=POINTS, face=3)
    assert torch.equal(alone, first), "the only face that is given"
    mesh = torch.full((478, 2), 65.0)
    for indices, at in (
        ((33, 160, 158, 133, 153, 144), (40.0, 50.0)),
        ((362, 385, 387, 263, 373, 380), (80.0, 50.0)),
        ((61,), (45.0, 85.0)),
        ((291,), (75.0, 85.0)),
    ):
        mesh[list(indices)] = torch.tensor(at)
    landmarks = {"frames": [[{"landmarks_xy": mesh.numpy()}]], "image_size": (120, 126)}
    found, _ = world.call("AlignFace", image=image, size=32, landmarks=landmarks)
    assert torch.equal(found, first)
    with pytest.raises(ValueError, match="126 x 120 pixels, expected 126 x 119"):
        world.call("AlignFace", image=image[:, 1:], size=32, landmarks=landmarks)
    with pytest.raises(ValueError, match="126 x 120"):
        world.call("AlignFace", image=image, size=32, landmarks=landmarks | {"frames": [[]]})
