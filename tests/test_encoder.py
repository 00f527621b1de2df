"""Encoders from files: what each kind computes, ReStyle's loop, which generators a latent fits, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fabricated_encoder import ROWS, W_DIM, content, decoder, encoder_state, face_state, write
from test_arcface import batch_norm, by_hand, images, prelu, trunk_by_hand
from tiny import copied, rng
from torch import Tensor

from nada_core.io.errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import write_torch
from nada_core.latents.encoder import Encoder, load_encoder
from nada_core.latents.sampling import render
from nada_core.models.checkpoints import load_generator, save_generator

KINDS = ("psp", "e4e", "restyle-psp", "restyle-e4e")


def load(folder: Path, kind: str, **settings: Any) -> Encoder:
    return load_encoder(write(folder / "encoder.pt", kind, **settings))


def head(state: dict[str, Tensor], row: int, x: Tensor) -> Tensor:
    index = 0
    while f"styles.{row}.convs.{index}.weight" in state:
        conv = f"styles.{row}.convs.{index}"
        x = F.leaky_relu(F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], stride=2, padding=1), 0.01)
        index += 2
    return x[:, :, 0, 0] @ (state[f"styles.{row}.linear.weight"].T / W_DIM**0.5) + state[f"styles.{row}.linear.bias"]


def maps_by_hand(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last maps of the last three stages: coarse, middle, fine."""
    x = prelu(
        batch_norm(state, "input_layer.1", F.conv2d(x, state["input_layer.0.weight"], padding=1)),
        state["input_layer.2.weight"],
    )
    result = []
    for index in range(8):
        x = by_hand(state, f"body.{index}", 2 if index in (0, 2, 4, 7) else 1, x)
        result.append(x)
    return result[7], result[6], result[3]


# ---- one pass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_pyramid_matches_the_formula(tmp_path: Path, kind: str) -> None:
    """Three rows from the coarse map, four from the middle, the rest from the fine one (pSp, section 3.1)."""
    state, photos = encoder_state(kind), images(2, 32)
    coarse, middle, fine = maps_by_hand(state, photos)

    def add(x: Tensor, finer: Tensor, number: int) -> Tensor:
        lateral = F.conv2d(finer, state[f"latlayer{number}.weight"], state[f"latlayer{number}.bias"])
        return F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=True) + lateral

    second = add(coarse, middle, 1)
    third = add(second, fine, 2)
    rows = [head(state, row, coarse if row < 3 else second if row < 7 else third) for row in range(ROWS)]
    if kind == "e4e":
        rows = [rows[0], *(rows[0] + offset for offset in rows[1:])]
    encoder = load(tmp_path, kind)
    expected = torch.stack(rows, 1) + decoder().w_avg
    assert encoder.kind == kind and encoder.side == 32 and not encoder.iterative
    torch.testing.assert_close(encoder.encode(photos).ws, expected, rtol=1e-4, atol=1e-4)


def test_zero_offsets_repeat_the_first_row(tmp_path: Path) -> None:
    """e4e, section 4.1: w_i = w + offset_i."""
    made = content("e4e")
    for row in range(1, ROWS):
        for part in ("weight", "bias"):
            made["state_dict"][f"encoder.styles.{row}.linear.{part}"].zero_()
    write_torch(tmp_path / "e.pt", made)
    ws = load_encoder(tmp_path / "e.pt").encode(images(2, 32)).ws
    assert torch.equal(ws, ws[:, :1].expand_as(ws)) and (ws[0] - ws[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_latents_fit_the_decoder_and_are_independent_of_the_batch(tmp_path: Path, kind: str) -> None:
    encoder, photos = load(tmp_path, kind), images(5, 48)
    before = photos.clone()
    result = encoder.encode(photos, iterations=2, batch=2)
    assert result.ws.shape == (5, ROWS, W_DIM) and result.space == encoder.decoder.space()
    assert torch.equal(photos, before) and not encoder.encode(photos.requires_grad_(), iterations=2).ws.requires_grad
    torch.testing.assert_close(encoder.encode(photos[3:4], iterations=2).ws, result.ws[3:4], rtol=1e-4, atol=1e-5)
    assert render(encoder.decoder, result).shape == (5, 3, 32, 32)
    assert not encoder.train().training and not any(p.requires_grad for p in encoder.parameters())
    assert len(encoder.source or "") == 64


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_image(tmp_path: Path, kind: str) -> None:
    encoder = load(tmp_path, kind)
    photos = torch.cat([images(2, 32)] * (2 if encoder.iterative else 1), 1).requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.net(photos).square().sum(), photos)
    assert gradient.isfinite().all() and (gradient.abs().amax((2, 3)) > 0).all()


@pytest.mark.parametrize("kind", ["psp", "restyle-e4e"])
def test_namespace_options_equal_dict_options(tmp_path: Path, kind: str) -> None:
    first, second = (load(tmp_path, kind, namespace=namespace).encode(images(1)) for namespace in (False, True))
    assert torch.equal(first.ws, second.ws) and first.space == second.space


def test_mean_latent_is_added_according_to_the_options(tmp_path: Path) -> None:
    plain = load(tmp_path, "psp").encode(images(1)).ws
    without = load(tmp_path, "psp", start_from_latent_avg=False).encode(images(1)).ws
    torch.testing.assert_close(plain - without, decoder().w_avg.expand(1, ROWS, -1), rtol=1e-4, atol=1e-5)
    old = content("psp")
    del old["opts"]["start_from_latent_avg"]
    write_torch(tmp_path / "old.pt", old)
    assert torch.equal(load_encoder(tmp_path / "old.pt").encode(images(1)).ws, plain)


@pytest.mark.parametrize("shape", ["[C]", "[1, C]", "[L, C]", "none"])
def test_mean_latent_of_every_shape_is_read(tmp_path: Path, shape: str) -> None:
    made = content("restyle-psp")
    mean = decoder().w_avg
    made["latent_avg"] = {"[C]": mean, "[1, C]": mean[None], "[L, C]": mean.repeat(ROWS, 1), "none": None}[shape]
    write_torch(tmp_path / "e.pt", made)
    encoder = load_encoder(tmp_path / "e.pt")
    if shape == "none":
        assert torch.equal(encoder.start, encoder.decoder.w_avg.expand(ROWS, -1))
        mean = encoder.decoder.mapping(torch.randn(10_000, W_DIM, generator=rng())).mean(0)
        torch.testing.assert_close(encoder.decoder.w_avg, mean)
    else:
        assert torch.equal(encoder.start, mean.expand(ROWS, -1)) and encoder.decoder.space() == decoder().space()


# ---- ReStyle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["restyle-psp", "restyle-e4e"])
def test_iterations_accumulate_offsets(tmp_path: Path, kind: str) -> None:
    """ReStyle, section 3.2: w_(t+1) = w_t + E(x, G(w_t)), from the mean; every head reads the last map."""
    encoder, photos, state = load(tmp_path, kind), images(2, 64), encoder_state(kind)
    small, made = F.avg_pool2d(photos, 2), decoder()
    ws = made.w_avg.expand(2, ROWS, -1)
    for count in (1, 2, 3):
        with torch.no_grad():
            last = trunk_by_hand(state, torch.cat([small, made.synthesize(ws, "const")], 1))
        rows = torch.stack([head(state, row, last) for row in range(ROWS)], 1)
        if kind == "restyle-e4e":
            rows = torch.cat([rows[:, :1], rows[:, :1] + rows[:, 1:]], 1)
        ws = ws + rows
        result = encoder.encode(photos, iterations=count).ws
        torch.testing.assert_close(result, ws, rtol=1e-3, atol=1e-3)
    assert encoder.iterative and (result - encoder.encode(photos, iterations=2).ws).abs().max() > 1e-2


def test_rendering_is_reduced_by_area(tmp_path: Path) -> None:
    encoder = load(tmp_path, "restyle-psp")
    encoder.side = 16
    drawn = encoder._draw(encoder.start[None], same=True)
    torch.testing.assert_close(drawn, F.avg_pool2d(encoder.decoder.synthesize(encoder.start[None]), 2))


@pytest.mark.parametrize(("kind", "total"), [("psp", 5), ("restyle-psp", 15)])
def test_iterations_are_reported_and_can_be_stopped(tmp_path: Path, kind: str, total: int) -> None:
    encoder, progress = load(tmp_path, kind), []
    encoder.encode(images(5), iterations=3, batch=4, on_pass=lambda done, of: progress.append((done, of)))
    assert progress == [(done, total) for done in ((4, 5) if kind == "psp" else (4, 8, 12, 13, 14, 15))]

    def stop(done: int, of: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.encode(images(1), on_pass=stop)


def test_batch_is_halved_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, photos = load(tmp_path, "restyle-psp"), images(4)
    expected, forward, sizes = encoder.encode(photos, 2).ws, encoder.net.forward, []

    def cramped(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return forward(images)

    monkeypatch.setattr(encoder.net, "forward", cramped)
    torch.testing.assert_close(encoder.encode(photos, 2).ws, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [4, 2, *[1] * 8]


@pytest.mark.parametrize("kind", ["psp", "restyle-psp", "restyle-e4e"])
def test_resnet_variants_load(tmp_path: Path, kind: str) -> None:
    encoder, state, photos = load(tmp_path, kind, trunk="resnet"), encoder_state(kind, trunk="resnet"), images(2, 32)
    x = (
        torch.cat([photos, encoder._draw(encoder.start.expand(2, -1, -1), same=True)], 1)
        if encoder.iterative
        else photos
    )
    x = prelu(batch_norm(state, "bn1", F.conv2d(x, state["conv1.weight"], None, 2, 3)), state["relu.weight"])
    for index in range(8):
        unit, stride = f"body.{index}", 2 if index in (2, 4, 7) else 1
        y = batch_norm(state, f"{unit}.bn1", F.conv2d(x, state[f"{unit}.conv1.weight"], None, stride, 1)).relu()
        y = batch_norm(state, f"{unit}.bn2", F.conv2d(y, state[f"{unit}.conv2.weight"], None, 1, 1))
        if f"{unit}.downsample.0.weight" in state:
            x = batch_norm(
                state, f"{unit}.downsample.1", F.conv2d(x, state[f"{unit}.downsample.0.weight"], None, stride)
            )
        x = (x + y).relu()
    torch.testing.assert_close(
        encoder.encode(photos, 1).ws[:, 0], decoder().w_avg + head(state, 0, x), rtol=1e-3, atol=1e-4
    )


# ---- cars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["e4e", "restyle-e4e"])
def test_car_encoders_crop_the_black_bands(tmp_path: Path, kind: str) -> None:
    encoder, photos = load(tmp_path, kind, dataset_type="cars_encode"), images(2, 64)
    assert encoder.wide and encoder._prepare(photos).shape == (2, 3, 24, 32)
    assert torch.equal(encoder._prepare(photos), F.avg_pool2d(photos, 2)[:, :, 4:28])
    banded = encoder.encode(photos, 2).ws
    torch.testing.assert_close(encoder.encode(photos[:, :, 8:56], 2).ws, banded, rtol=1e-4, atol=1e-5)
    assert (load(tmp_path, kind).encode(photos, 2).ws - banded).abs().max() > 1e-3


# ---- which generators a latent fits -------------------------------------------------------------------------------


def test_generator_with_the_same_mapping_accepts_the_latents(tmp_path: Path) -> None:
    encoder, own = load(tmp_path, "e4e"), decoder()
    with torch.no_grad():
        own.w_avg.add_(1e-3)  # as estimated from other samples
        own.get_parameter("synthesis.b8.conv0.weight").mul_(1.1)  # and adapted
    plain, checked = encoder.encode(images(1)), encoder.encode(images(1), generator=own)
    assert plain.space == decoder().space() == own.space() == checked.space and torch.equal(plain.ws, checked.ws)
    assert render(own, checked).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("other", [{"rng": rng(9)}, {"resolution": 16, "widths": [8, 7, 4]}, {"mapping_layers": 3}])
def test_generator_with_another_mapping_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    encoder, unrelated = load(tmp_path, "e4e"), decoder(**other)
    before = copied(unrelated.state_dict())
    with pytest.raises(ValueError, match="mapping network is not the decoder's"):
        encoder.encode(images(1), generator=unrelated)
    assert all(torch.equal(value, before[name]) for name, value in unrelated.state_dict().items())


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"batch": 0}])
def test_settings_below_one_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        load(tmp_path, "psp").encode(images(1), **settings)


@pytest.mark.parametrize("images", [torch.zeros(3, 32, 32), torch.full((1, 3, 32, 32), torch.nan)])
def test_invalid_images_are_refused(tmp_path: Path, images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        load(tmp_path, "psp", dataset_type="cars_encode").encode(images)


def changed(change: str) -> dict[str, Any]:
    made = copy.deepcopy(content("psp"))
    state, opts = made["state_dict"], made["opts"]
    if change == "type":
        opts["encoder_type"] = "BackboneEncoderUsingLastLayerIntoW"
    elif change == "no type":
        del made["opts"]
    elif change in ("decoder", "encoder"):
        made["state_dict"] = {name: value for name, value in state.items() if not name.startswith(f"{change}.")}
    elif change == "StyleGAN3":
        made["state_dict"] = {name: value for name, value in state.items() if name.startswith("encoder.")}
        made["state_dict"]["decoder.synthesis.L0_36_16.weight"] = torch.zeros(2)
    elif change == "rows":
        made["state_dict"] = {name: value for name, value in state.items() if not name.startswith("encoder.styles.7.")}
    elif change == "pyramid":
        opts["encoder_type"] = "BackboneEncoder"
    elif change == "labels":
        state["encoder.input_layer.0.weight"] = torch.zeros(4, 19, 3, 3)
    elif change == "mean":
        made["latent_avg"] = torch.zeros(3, W_DIM)
    elif change == "missing":
        del state["encoder.latlayer1.bias"]
    elif change == "heads":
        made["state_dict"] = {
            name: value for name, value in state.items() if not (name.startswith("encoder.") and ".convs." in name)
        }
    elif change == "half a decoder":
        del state["decoder.style.1.bias"]
    return made


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ("type", UnsupportedCheckpointError, "'BackboneEncoderUsingLastLayerIntoW'; known are GradualStyleEncoder"),
        ("no type", UnsupportedCheckpointError, "encoder type None"),
        ("decoder", CheckpointError, "without its decoder"),
        ("encoder", UnsupportedCheckpointError, "load it as a generator"),
        ("StyleGAN3", UnsupportedCheckpointError, "no StyleGAN2"),
        ("rows", CheckpointError, "7 rows"),
        ("pyramid", CheckpointError, "do not fit the encoder's type"),
        ("labels", UnsupportedCheckpointError, "19 channels"),
        ("mean", CheckpointError, r"latent_avg has shape \[3, 6\]"),
        ("missing", CheckpointError, r"latlayer1\.bias"),
        ("heads", CheckpointError, "do not fit the encoder's type"),
        ("half a decoder", CheckpointError, r"its decoder.*style\.1\.bias"),
    ],
)
def test_unknown_and_damaged_encoders_are_refused(tmp_path: Path, change: str, kind: type, message: str) -> None:
    path = tmp_path / "encoder.pt"
    write_torch(path, changed(change))
    with pytest.raises(kind, match=message) as error:
        load_encoder(path)
    assert str(path) in str(error.value)


def test_whole_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    save_generator(decoder(), tmp_path / "g.safetensors", {})
    with pytest.raises(UnsupportedCheckpointError, match="load it as a generator"):
        load_encoder(tmp_path / "g.safetensors")
    write_torch(tmp_path / "face.pth", face_state())
    with pytest.raises(UnsupportedCheckpointError, match="a face recogniser; load it as an identity network"):
        load_encoder(tmp_path / "face.pth")
    write_torch(tmp_path / "other.pth", {"layer.weight": torch.zeros(2)})
    with pytest.raises(UnsupportedCheckpointError, match="none of the usual files"):
        load_encoder(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder(tmp_path / "nothing.pt")
    whole = write(tmp_path / "encoder.pt", "psp").read_bytes()
    (tmp_path / "encoder.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedCheckpointError):
        load_encoder(tmp_path / "encoder.pt")


def test_generator_is_not_loaded_from_an_encoder_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="an encoder .*as an encoder"):
        load_generator(write(tmp_path / "encoder.pt", "psp"))
