"""Face recognition: the trunk against formulas, the crop, both kinds of file, and refused files."""

from __future__ import annotations

import re
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
from nada_core.models.irse import Sizes, Unit, stage_starts, trunk_of
from nada_core.models.state_dict import load_weights

State = dict[str, Tensor]


def images(count: int = 3, side: int = 48, seed: int = 5) -> Tensor:
    return torch.rand(count, 3, side, side, generator=rng(seed)) * 2 - 1


def written(path: Path, state: State) -> Path:
    write_torch(path, state)
    return path


@pytest.fixture
def face(tmp_path: Path) -> Identity:
    return load_identity(written(tmp_path / "model_ir_se50.pth", face_state()))


# ---- the trunk, against formulas ----------------------------------------------------------------------------------


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (
        state[f"{name}.{part}"].reshape(1, -1, *[1] * (x.ndim - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def prelu(x: Tensor, slopes: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slopes.view(1, -1, 1, 1))


def by_hand(state: State, unit: str, stride: int, x: Tensor) -> Tensor:
    """One unit, from arXiv:1801.07698 section 3 and arXiv:1709.01507 equations 2 to 4."""
    y = F.conv2d(batch_norm(state, f"{unit}.res_layer.0", x), state[f"{unit}.res_layer.1.weight"], padding=1)
    y = F.conv2d(prelu(y, state[f"{unit}.res_layer.2.weight"]), state[f"{unit}.res_layer.3.weight"], None, stride, 1)
    y = batch_norm(state, f"{unit}.res_layer.4", y)
    if f"{unit}.res_layer.5.fc1.weight" in state:
        squeeze, excite = (state[f"{unit}.res_layer.5.{part}.weight"][:, :, 0, 0] for part in ("fc1", "fc2"))
        y = y * ((y.mean((2, 3)) @ squeeze.T).clamp(min=0) @ excite.T).sigmoid()[:, :, None, None]
    if f"{unit}.shortcut_layer.0.weight" not in state:
        return y + x[:, :, ::stride, ::stride]
    return y + batch_norm(
        state, f"{unit}.shortcut_layer.1", F.conv2d(x, state[f"{unit}.shortcut_layer.0.weight"], None, stride)
    )


def trunk_by_hand(state: State, x: Tensor) -> Tensor:
    x = prelu(
        batch_norm(state, "input_layer.1", F.conv2d(x, state["input_layer.0.weight"], padding=1)),
        state["input_layer.2.weight"],
    )
    for index in range(8):
        x = by_hand(state, f"body.{index}", 2 if index in (0, 2, 4, 7) else 1, x)
    return x


@pytest.mark.parametrize("squeezed", [2, 0], ids=["IR-SE", "IR"])
@pytest.mark.parametrize(("index", "stride"), [(0, 2), (1, 1), (2, 2)])
def test_unit_matches_the_formula(index: int, stride: int, squeezed: int) -> None:
    state = irse(Draw(1), squeezed=squeezed)
    outputs, inputs = state[f"body.{index}.res_layer.1.weight"].shape[:2]
    unit = Unit(Sizes(inputs, outputs, squeezed), stride)
    load_weights(
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


def test_sizes_come_from_the_tensors() -> None:
    trunk = trunk_of(irse(Draw(0), channels=6))
    assert (trunk.channels, trunk.starts, trunk.widths, trunk.reduction) == (6, (0, 2, 4, 7), (4, 6, 8, 10), 16)
    full = [Sizes(64, 64, 4)] * 3 + [Sizes(64, 128, 8)] + [Sizes(128, 128, 8)] * 3 + [Sizes(128, 256, 16)]
    full += [Sizes(256, 256, 16)] * 13 + [Sizes(256, 512, 32)] + [Sizes(512, 512, 32)] * 2
    assert stage_starts(full) == (0, 3, 7, 21) and len(full) == 24


def test_trunk_returns_the_last_map_of_every_stage() -> None:
    state = irse(Draw(0))
    trunk = trunk_of(state)
    load_weights(trunk, state)
    maps = trunk(images(1, 32))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 16, 16), (6, 8, 8), (8, 4, 4), (10, 2, 2)]
    torch.testing.assert_close(maps[-1], trunk_by_hand(state, images(1, 32)), rtol=1e-4, atol=1e-5)


# ---- files of ArcFace -------------------------------------------------------------------------------------


def test_crop_and_embedding_match_psp(face: Identity) -> None:
    """Side 32: resized to 73 pixels, rows 10..64 and columns 9..63 are kept."""
    state, faces = face_state(), images(2, 146)
    framed = F.avg_pool2d(faces, 2)[:, :, 10:64, 9:63]
    x = batch_norm(state, "output_layer.0", trunk_by_hand(state, F.adaptive_avg_pool2d(framed, 32)))
    x = x.flatten(1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    x = batch_norm(state, "output_layer.4", x)
    torch.testing.assert_close(face(faces), x / x.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_full_network_uses_the_published_crop() -> None:
    with torch.device("meta"):
        trunk = trunk_of(irse(Draw(0)))
        net = ArcFace(trunk, 112, 4)
    x = torch.arange(256.0)
    faces = net.prepare((x[:, None] * 1000 + x).expand(1, 3, 256, 256))
    assert net.framed == 256 and faces.shape == (1, 3, 112, 112)
    cut = F.adaptive_avg_pool2d((x[:, None] * 1000 + x)[None, None, 35:223, 32:220], 112)
    assert torch.equal(faces[:, :1], cut)


def test_small_images_are_enlarged_smoothly(face: Identity) -> None:
    assert torch.equal(face(images(2, 40)), face(resize(images(2, 40), 73)))


def test_embeddings_are_unit_vectors_independent_of_the_batch(face: Identity) -> None:
    faces = images()
    embedded = face(faces)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(face(faces[1:2]), embedded[1:2], rtol=1e-4, atol=1e-6)
    assert (embedded[0] - embedded[1]).abs().max() > 1e-3
    assert not face.train().training and torch.equal(face(faces), embedded)
    assert face.name == "model_ir_se50" and len(face.source or "") == 64


@pytest.mark.parametrize("side", [16, 32, 64, 160])
def test_gradients_reach_images_of_any_size(face: Identity, side: int) -> None:
    faces = images(2, side).requires_grad_()
    (gradient,) = torch.autograd.grad((1 - (face(faces) * face(images(2, side, 9))).sum(1)).mean(), faces)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert not any(parameter.requires_grad for parameter in face.parameters())


def test_gradients_match_finite_differences(tmp_path: Path) -> None:
    face = load_identity(written(tmp_path / "a.pth", face_state())).double()
    faces, step = images(1, 40).double().requires_grad_(), images(1, 40, 8).double()
    target = torch.randn(5, generator=rng(3)).double()
    (gradient,) = torch.autograd.grad(face(faces)[0] @ target, faces)
    with torch.no_grad():
        ahead, behind = ((face(faces + sign * 1e-6 * step)[0] @ target) for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 40), (0, 3, 32, 32)])
def test_images_that_are_not_square_rgb_are_refused(face: Identity, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(list(shape)))):
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
    assert load_identity(tmp_path / "c.safetensors")(images()).dtype == torch.float32


# ---- the built-in network ---------------------------------------------------------------------------------------


def small(path: Path, **changes: str) -> tuple[SmallFace, Path]:
    net = SmallFace(width=8, dim=6)
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.normal_(std=0.3, generator=rng(number))
    save_file(net.state_dict(), path, metadata={"kind": "nada_identity"} | changes)
    return net, path


def test_small_face_survives_the_file(tmp_path: Path) -> None:
    net, path = small(tmp_path / "identity.safetensors")
    face = load_identity(path)
    assert isinstance(face.net, SmallFace)
    torch.testing.assert_close(face(images(2, 64)), F.normalize(net(images(2, 64)), dim=1))
    torch.testing.assert_close(face(images(2, 128)), face(F.avg_pool2d(images(2, 128), 2)), rtol=1e-4, atol=1e-5)
    faces = images(2, 100).requires_grad_()
    face(faces)[:, 0].sum().backward()
    assert faces.grad is not None and (faces.grad.abs().amax((1, 2, 3)) > 0).all()


def test_builtin_name_loads_the_builtin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = small(tmp_path / "identity.safetensors")
    monkeypatch.setitem(load_identity.__globals__["BUILTINS"], "portraits", path)
    assert load_identity("portraits").name == "portraits"


def test_safetensors_of_another_kind_is_refused(tmp_path: Path) -> None:
    _, path = small(tmp_path / "a.safetensors", kind="something")
    with pytest.raises(UnsupportedCheckpointError, match=r"model_ir_se50\.pth"):
        load_identity(path)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("visual.conv1.weight", "a CLIP model"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP model"),
        ("g_ema.conv1.conv.modulation.weight", "a generator; load it as a generator"),
        ("state_dict.module.encoder_q.layer4.0.conv1.weight", "MoCo"),
        ("layer4.0.conv1.weight", "a ResNet"),
        ("input_layer.0.weight", "begin with"),
        ("body.0.res_layer.1.weight", "a trunk without"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, guess: str) -> None:
    path = written(tmp_path / "file.pth", {name: torch.zeros(2, 2)})
    with pytest.raises(UnsupportedCheckpointError, match=guess) as error:
        load_identity(path)
    assert str(path) in str(error.value)


def test_generators_encoders_and_missing_files_are_refused(tmp_path: Path) -> None:
    save_generator(generator(), tmp_path / "g.safetensors", {})
    with pytest.raises(UnsupportedCheckpointError, match="as a generator"):
        load_identity(tmp_path / "g.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="as an encoder"):
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
    ("change", "problem"),
    [
        ("missing", r"missing are trunk\.body\.3\.res_layer\.4\.running_var"),
        ("unit", r"body\.\d"),
        ("extra", r"unexpected are .*body\.1\.res_layer\.9\.weight"),
        ("shape", r"body\.3\.res_layer\.2\.weight"),
        ("last", "30 numbers"),
        ("channels", "6 channels"),
        ("axes", r"body\.0\.res_layer\.1\.weight is of shape \[4, 4\]"),
    ],
)
def test_damaged_files_name_the_problem(tmp_path: Path, change: str, problem: str) -> None:
    path = written(tmp_path / "face.pth", broken(change))
    with pytest.raises(CheckpointError, match=problem) as error:
        load_identity(path)
    assert str(path) in str(error.value)


def test_nan_is_refused(tmp_path: Path) -> None:
    state = face_state()
    state["body.0.res_layer.1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(DamagedCheckpointError, match="NaN"):
        load_identity(written(tmp_path / "face.pth", state))


def test_identity_accepts_any_network() -> None:
    face = Identity("mine", nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    assert face(images(2, 16)).shape == (2, 4) and not any(p.requires_grad for p in face.parameters())
