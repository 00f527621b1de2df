"""Face recognisers: the trunk's arithmetic, what is seen of a picture, both kinds of file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fabricated_encoder import Draw, face_state, irse, write
from safetensors.torch import save_file
from tiny import generator, rng
from torch import Tensor, nn

from nada_core.io.errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError
from nada_core.io.images import resize
from nada_core.io.metadata import write_torch
from nada_core.models.arcface import ArcFace, Identity, SmallFace, load_identity
from nada_core.models.checkpoints import save_generator
from nada_core.models.irse import Sizes, Unit, fill, stage_starts, trunk_of

State = dict[str, Tensor]


def pictures(count: int = 3, side: int = 48, seed: int = 5) -> Tensor:
    return torch.rand(count, 3, side, side, generator=rng(seed)) * 2 - 1


def written(path: Path, state: State) -> Path:
    write_torch(path, state)
    return path


@pytest.fixture
def face(tmp_path: Path) -> Identity:
    return load_identity(written(tmp_path / "model_ir_se50.pth", face_state()))


# ---- the trunk, against formulas ----------------------------------------------------------------------------------


def normed(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (
        state[f"{name}.{part}"].reshape(1, -1, *[1] * (x.ndim - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def bent(x: Tensor, slopes: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slopes.view(1, -1, 1, 1))


def by_hand(state: State, unit: str, stride: int, x: Tensor) -> Tensor:
    """One unit, from arXiv:1801.07698 section 3 and arXiv:1709.01507 equations 2 to 4."""
    y = F.conv2d(normed(state, f"{unit}.res_layer.0", x), state[f"{unit}.res_layer.1.weight"], padding=1)
    y = F.conv2d(bent(y, state[f"{unit}.res_layer.2.weight"]), state[f"{unit}.res_layer.3.weight"], None, stride, 1)
    y = normed(state, f"{unit}.res_layer.4", y)
    if f"{unit}.res_layer.5.fc1.weight" in state:
        squeeze, excite = (state[f"{unit}.res_layer.5.{part}.weight"][:, :, 0, 0] for part in ("fc1", "fc2"))
        y = y * ((y.mean((2, 3)) @ squeeze.T).clamp(min=0) @ excite.T).sigmoid()[:, :, None, None]
    if f"{unit}.shortcut_layer.0.weight" not in state:
        return y + x[:, :, ::stride, ::stride]
    return y + normed(
        state, f"{unit}.shortcut_layer.1", F.conv2d(x, state[f"{unit}.shortcut_layer.0.weight"], None, stride)
    )


def trunk_by_hand(state: State, x: Tensor) -> Tensor:
    x = bent(
        normed(state, "input_layer.1", F.conv2d(x, state["input_layer.0.weight"], padding=1)),
        state["input_layer.2.weight"],
    )
    for index in range(8):
        x = by_hand(state, f"body.{index}", 2 if index in (0, 2, 4, 7) else 1, x)
    return x


@pytest.mark.parametrize("squeezed", [2, 0], ids=["IR-SE", "IR"])
@pytest.mark.parametrize(("index", "stride"), [(0, 2), (1, 1), (2, 2)])
def test_a_unit_is_its_formula(index: int, stride: int, squeezed: int) -> None:
    state = irse(Draw(1), squeezed=squeezed)
    outputs, inputs = state[f"body.{index}.res_layer.1.weight"].shape[:2]
    unit = Unit(Sizes(inputs, outputs, squeezed), stride)
    fill(
        unit,
        {
            name.removeprefix(f"body.{index}."): value
            for name, value in state.items()
            if name.startswith(f"body.{index}.")
        },
    )
    x = torch.randn(2, inputs, 6, 6, generator=rng(2))
    assert unit(x).shape == (2, outputs, 6 // stride, 6 // stride)
    torch.testing.assert_close(unit(x), by_hand(state, f"body.{index}", stride, x), rtol=1e-5, atol=1e-6)


def test_sizes_are_read_off_the_tensors() -> None:
    trunk = trunk_of(irse(Draw(0), channels=6))
    assert (trunk.channels, trunk.starts, trunk.widths, trunk.reduction) == (6, (0, 2, 4, 7), (4, 6, 8, 10), 16)
    full = [Sizes(64, 64, 4)] * 3 + [Sizes(64, 128, 8)] + [Sizes(128, 128, 8)] * 3 + [Sizes(128, 256, 16)]
    full += [Sizes(256, 256, 16)] * 13 + [Sizes(256, 512, 32)] + [Sizes(512, 512, 32)] * 2
    assert stage_starts(full) == (0, 3, 7, 21) and len(full) == 24


def test_the_maps_are_those_before_each_next_stage() -> None:
    state = irse(Draw(0))
    trunk = trunk_of(state)
    fill(trunk, state)
    maps = trunk(pictures(1, 32))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 16, 16), (6, 8, 8), (8, 4, 4), (10, 2, 2)]
    torch.testing.assert_close(maps[-1], trunk_by_hand(state, pictures(1, 32)), rtol=1e-4, atol=1e-5)


# ---- a face recogniser's file -------------------------------------------------------------------------------------


def test_a_face_is_seen_as_psp_sees_it(face: Identity) -> None:
    """side 32: framed at 73 pixels, of which rows 10..64 and columns 9..63 stay."""
    state, seen = face_state(), pictures(2, 146)
    framed = F.avg_pool2d(seen, 2)[:, :, 10:64, 9:63]
    x = normed(state, "output_layer.0", trunk_by_hand(state, F.adaptive_avg_pool2d(framed, 32)))
    x = x.flatten(1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    x = normed(state, "output_layer.4", x)
    torch.testing.assert_close(face(seen), x / x.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_full_network_cuts_the_published_frame() -> None:
    with torch.device("meta"):
        trunk = trunk_of(irse(Draw(0)))
        net = ArcFace(trunk, 112, 4)
    x = torch.arange(256.0)
    seen = net.prepare((x[:, None] * 1000 + x).expand(1, 3, 256, 256))
    assert net.framed == 256 and seen.shape == (1, 3, 112, 112)
    cut = F.adaptive_avg_pool2d((x[:, None] * 1000 + x)[None, None, 35:223, 32:220], 112)
    assert torch.equal(seen[:, :1], cut)


def test_small_pictures_are_enlarged_without_steps(face: Identity) -> None:
    assert torch.equal(face(pictures(2, 40)), face(resize(pictures(2, 40), 73)))


def test_vectors_are_units_and_independent_of_the_batch(face: Identity) -> None:
    seen = pictures()
    found = face(seen)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(face(seen[1:2]), found[1:2], rtol=1e-4, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert not face.train().training and torch.equal(face(seen), found)
    assert face.name == "model_ir_se50" and len(face.source or "") == 64


@pytest.mark.parametrize("side", [16, 32, 64, 160])
def test_gradients_reach_pictures_of_any_side(face: Identity, side: int) -> None:
    seen = pictures(2, side).requires_grad_()
    (gradient,) = torch.autograd.grad((1 - (face(seen) * face(pictures(2, side, 9))).sum(1)).mean(), seen)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert not any(parameter.requires_grad for parameter in face.parameters())


def test_gradients_are_those_of_finite_differences(tmp_path: Path) -> None:
    face = load_identity(written(tmp_path / "a.pth", face_state())).double()
    seen, step = pictures(1, 40).double().requires_grad_(), pictures(1, 40, 8).double()
    target = torch.randn(5, generator=rng(3)).double()
    (gradient,) = torch.autograd.grad(face(seen)[0] @ target, seen)
    with torch.no_grad():
        ahead, behind = ((face(seen + sign * 1e-6 * step)[0] @ target) for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 40), (0, 3, 32, 32)])
def test_what_is_no_square_picture_is_refused(face: Identity, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, 3, H, H\]"):
        face(torch.zeros(shape))


def test_variants_of_the_layout_load(tmp_path: Path) -> None:
    plain = face_state(squeezed=0)  # CurricularFace: no SE, and a last normalisation without weights
    del plain["output_layer.4.weight"], plain["output_layer.4.bias"]
    net = load_identity(written(tmp_path / "a.pth", plain)).net
    assert isinstance(net, ArcFace) and net.output_layer[4].weight is None
    old = {name: value for name, value in face_state(last=3).items() if not name.endswith("num_batches_tracked")}
    net = load_identity(written(tmp_path / "b.pth", old)).net
    assert isinstance(net, ArcFace) and net.side == 48
    half = {name: value.half() for name, value in face_state().items() if value.is_floating_point()}
    save_file(half, tmp_path / "c.safetensors")
    assert load_identity(tmp_path / "c.safetensors")(pictures()).dtype == torch.float32


# ---- the built-in one ---------------------------------------------------------------------------------------------


def small(path: Path, **changes: str) -> tuple[SmallFace, Path]:
    net = SmallFace(width=8, dim=6)
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.normal_(std=0.3, generator=rng(number))
    save_file(net.state_dict(), path, metadata={"kind": "nada_identity"} | changes)
    return net, path


def test_a_small_face_comes_back(tmp_path: Path) -> None:
    net, path = small(tmp_path / "identity.safetensors")
    face = load_identity(path)
    assert isinstance(face.net, SmallFace)
    torch.testing.assert_close(face(pictures(2, 64)), F.normalize(net(pictures(2, 64)), dim=1))
    torch.testing.assert_close(face(pictures(2, 128)), face(F.avg_pool2d(pictures(2, 128), 2)), rtol=1e-4, atol=1e-5)
    seen = pictures(2, 100).requires_grad_()
    face(seen)[:, 0].sum().backward()
    assert seen.grad is not None and (seen.grad.abs().amax((1, 2, 3)) > 0).all()


def test_the_name_leads_to_the_built_in_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = small(tmp_path / "identity.safetensors")
    monkeypatch.setitem(load_identity.__globals__["BUILTINS"], "portraits", path)
    assert load_identity("portraits").name == "portraits"


def test_another_safetensors_is_not_taken_for_the_built_in_kind(tmp_path: Path) -> None:
    _, path = small(tmp_path / "a.safetensors", kind="something")
    with pytest.raises(UnsupportedCheckpointError, match=r"model_ir_se50\.pth"):
        load_identity(path)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("visual.conv1.weight", "a CLIP model"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP model"),
        ("g_ema.conv1.conv.modulation.weight", "a generator; load it with load_generator"),
        ("state_dict.module.encoder_q.layer4.0.conv1.weight", "MoCo"),
        ("layer4.0.conv1.weight", "a ResNet"),
        ("input_layer.0.weight", "begin with"),
        ("body.0.res_layer.1.weight", "a trunk without"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, name: str, guess: str) -> None:
    path = written(tmp_path / "file.pth", {name: torch.zeros(2, 2)})
    with pytest.raises(UnsupportedCheckpointError, match=guess) as told:
        load_identity(path)
    assert "model_ir_se50.pth" in str(told.value) and "models/stylegan_nada/identity" in str(told.value)


def test_whole_files_of_ours_and_others_are_refused(tmp_path: Path) -> None:
    save_generator(generator(), tmp_path / "g.safetensors", {})
    with pytest.raises(UnsupportedCheckpointError, match="load_generator"):
        load_identity(tmp_path / "g.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="load_encoder"):
        load_identity(write(tmp_path / "e.pt", "e4e"))
    with pytest.raises(CheckpointError, match="no such file"):
        load_identity(tmp_path / "nothing.pth")


def broken(change: str) -> State:
    state = face_state()
    if change == "missing":
        del state["body.3.res_layer.4.running_var"]
    elif change == "unit":
        state = {name: value for name, value in state.items() if not name.startswith("body.4.")}
    elif change == "extra":
        state["body.1.res_layer.9.weight"] = torch.zeros(1)
    elif change == "shape":
        state["body.3.res_layer.2.weight"] = torch.zeros(3)
    elif change == "last":
        state["output_layer.3.weight"] = torch.zeros(5, 30)
    elif change == "channels":
        state["input_layer.0.weight"] = torch.zeros(4, 6, 3, 3)
    elif change == "axes":
        state["body.0.res_layer.1.weight"] = torch.zeros(4, 4)
    return state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("missing", r"missing are trunk\.body\.3\.res_layer\.4\.running_var"),
        ("unit", r"body\.\d"),
        ("extra", "unexpected are"),
        ("shape", "another shape"),
        ("last", "no square map"),
        ("channels", "not 3"),
        ("axes", r"body\.0\.res_layer\.1\.weight is of shape \[4, 4\]"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, change: str, told: str) -> None:
    path = written(tmp_path / "face.pth", broken(change))
    with pytest.raises(CheckpointError, match=told) as error:
        load_identity(path)
    assert str(path) in str(error.value)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    state = face_state()
    state["body.0.res_layer.1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(DamagedCheckpointError, match="NaN"):
        load_identity(written(tmp_path / "face.pth", state))


def test_a_recogniser_of_another_make_fits_too() -> None:
    face = Identity("mine", nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    assert face(pictures(2, 16)).shape == (2, 4) and not any(p.requires_grad for p in face.parameters())
