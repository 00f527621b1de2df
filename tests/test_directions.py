"""Editing directions: discovery, edits, boundaries and files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tiny import generator, rng
from torch import Tensor, nn

from nada_core.io.checkpoint_file import read_checkpoint
from nada_core.io.errors import CheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import write_safetensors
from nada_core.latents.directions import Directions, boundary, edit, load_directions, principal, save_directions, sefa
from nada_core.latents.sampling import Latents, render, sample
from nada_core.models.generator import Generator

AXES = torch.linalg.qr(torch.randn(5, 5, generator=rng(7))).Q  # one axis per row
SPREAD = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])


class Stretch(nn.Module):
    """A mapping whose w is a Gaussian with known axes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w_avg", torch.arange(5.0))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return z @ (AXES * SPREAD[:, None]) + torch.arange(5.0)


def known_generator() -> Generator:
    """A generator whose w has the axes AXES with deviations SPREAD; the styles use these axes, the last most often."""
    made = generator(z_dim=5)
    made.mapping = Stretch()  # type: ignore[assignment]
    state = dict(made.named_parameters())
    used = [layer for layer in made.layers() if layer.kind == "conv" or layer.name == "b16.torgb"]
    axes = torch.tensor([4] * 15 + [3] * 10 + [2] * 7 + [1] * 4 + [0] * 2)[torch.randperm(38, generator=rng(3))]
    with torch.no_grad():
        for layer in made.layers():
            if layer.kind == "rgb":  # these share their row with a convolution and are not used
                state[f"synthesis.{layer.name}.affine.weight"].copy_(
                    AXES[0].expand(len(state[f"synthesis.{layer.name}.affine.weight"]), -1)
                )
        for layer in used:
            weight = state[f"synthesis.{layer.name}.affine.weight"]
            mine, axes = axes[: len(weight)], axes[len(weight) :]
            length = torch.rand(len(weight), 1, generator=rng(4)) * 9 + 1  # the lengths do not matter
            weight.copy_(AXES[mine] * length)
    return made


def aligned(result: Directions, axes: Tensor) -> bool:
    return bool(((result.vectors[:, 0] * axes).sum(1).abs() >= 0.99).all())


def test_sefa_finds_the_known_axes() -> None:
    result = sefa(known_generator(), 5)
    assert result.vectors.shape == (5, 1, 5) and aligned(result, AXES.flip(0))
    torch.testing.assert_close(result.scale, SPREAD.flip(0), rtol=0.05, atol=0)
    assert (
        result.names == ("sefa 0", "sefa 1", "sefa 2", "sefa 3", "sefa 4") and result.space == known_generator().space()
    )
    assert torch.equal(result.vectors, sefa(known_generator(), 5).vectors)


def test_sefa_uses_the_selected_rows_only() -> None:
    made = generator()
    parts = [made.get_parameter(f"synthesis.{name}.affine.weight") for name in ("b8.conv1", "b16.conv0")]
    styles = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts]).detach()
    result = sefa(made, 4, layers=(2, 4))
    vectors = result.vectors[:, 2]
    energy = (styles @ vectors.T).square().sum(0)
    assert (energy.diff() < 0).all()
    torch.testing.assert_close(styles.T @ styles @ vectors.T, vectors.T * energy, rtol=1e-3, atol=1e-4)
    assert torch.equal(result.vectors[:, 3], vectors) and result.vectors.shape == (4, 6, 5)
    assert not result.vectors[:, [0, 1, 4, 5]].any()


def test_principal_directions_of_w() -> None:
    result = principal(known_generator(), 4)
    assert result.vectors.shape == (4, 1, 5) and aligned(result, AXES[:4]) and result.names[0] == "pca 0"
    torch.testing.assert_close(result.scale, SPREAD[:4], rtol=0.03, atol=0)
    assert (result.scale.diff() < 0).all()
    largest = result.vectors[:, 0].gather(1, result.vectors[:, 0].abs().argmax(1, keepdim=True))
    assert (largest > 0).all() and torch.equal(result.vectors, principal(known_generator(), 4).vectors)
    assert not torch.equal(result.vectors, principal(known_generator(), 4, seed=1).vectors)
    part = principal(known_generator(), 4, layers=(1, 3)).vectors
    assert torch.equal(part[:, 1:3], result.vectors.expand(-1, 2, -1)) and not part[:, [0, 3, 4, 5]].any()


def test_directions_of_conditional_generators() -> None:
    for result in (sefa(generator(c_dim=3), 2), principal(generator(c_dim=3), 2)):
        assert result.vectors.shape == (2, 1, 5) and (result.scale > 0).all()


@pytest.mark.parametrize("act", [sefa, principal])
def test_unavailable_directions_are_refused(act: Any) -> None:
    for arguments, message in (
        ({"count": 0}, "expected 1 to 5"),
        ({"count": 6}, "expected 1 to 5"),
        ({"layers": (2, 2)}, "Got rows 2 to 2"),
        ({"layers": (0, 7)}, "last <= 6"),
        ({"layers": (-1, 2)}, "Got rows -1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            act(generator(), **({"count": 2} | arguments))
    with pytest.raises(ValueError, match="at least 10"):
        principal(generator(), 2, samples=9)


def test_edit_moves_latents_by_strength_and_scale() -> None:
    made = known_generator()
    latents = replace(sample(made, range(3)), noise=made.draw_noise(3, rng(1)))
    before = latents.ws.clone()
    smile = principal(made, 4)["pca 2"]
    step = smile.vectors[0] * smile.scale
    moved = edit(latents, smile, -2)
    torch.testing.assert_close(moved.ws, before - 2 * step)
    assert moved.space == made.space() and moved.noise is latents.noise and torch.equal(latents.ws, before)
    assert torch.equal(edit(latents, smile, 0.0).ws, before)
    part = edit(latents, smile, 1.5, layers=(2, 4)).ws
    assert torch.equal(part[:, [0, 1, 4, 5]], before[:, [0, 1, 4, 5]])
    torch.testing.assert_close(part[:, 2:4], before[:, 2:4] + 1.5 * step)
    strengths = [0.0, 1.0, -1.0, 0.5, 2.0, 0.0]
    torch.testing.assert_close(edit(latents, smile, strengths).ws, before + torch.tensor(strengths)[:, None] * step)
    rows = sefa(made, 2, layers=(1, 3))[1]
    torch.testing.assert_close(edit(latents, rows, 3).ws, before + 3 * rows.scale * rows.vectors[0])
    assert (render(made, moved) - render(made, latents)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("direction", "arguments", "message"),
    [
        ({}, {"strength": float("nan")}, "Got strength nan"),
        ({}, {"strength": [1.0, 2.0]}, "strength \\[1.0, 2.0\\].*or 6"),
        ({}, {"layers": (3, 3)}, "Got rows 3 to 3"),
        ({"space": "b"}, {}, "space b.* is a"),
        ({"vectors": torch.ones(1, 3, 5)}, {}, r"direction of \[3, 5\]"),
        ({"vectors": torch.ones(1, 1, 4)}, {}, r"expected \[1, 5\]"),
        ({"vectors": torch.ones(2, 1, 5), "scale": torch.ones(2), "names": ("x", "y")}, {}, "Got 2 directions"),
    ],
)
def test_edit_refuses_other_shapes_and_generators(
    direction: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    one: dict[str, Any] = {"vectors": torch.ones(1, 1, 5), "scale": torch.ones(1), "names": ("x",), "space": "a"}
    latents, given = Latents(torch.zeros(2, 6, 5), space="a"), Directions(**(one | direction))
    with pytest.raises(ValueError, match=message):
        edit(latents, given, **({"strength": 1.0} | arguments))


def test_directions_are_selected_by_index_and_name() -> None:
    result = principal(known_generator(), 4)
    assert len(result) == 4 and len(result[1:3]) == 2 and result[1:3].names == ("pca 1", "pca 2")
    for one in (result[3], result[-1], result["pca 3"]):
        assert (
            torch.equal(one.vectors, result.vectors[3:]) and one.scale == result.scale[3] and one.space == result.space
        )
    with pytest.raises(IndexError):
        result[4]
    with pytest.raises(ValueError, match="'smile', expected one of pca 0, pca 1"):
        result["smile"]
    with pytest.raises(ValueError, match="which is empty"):
        result[4:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": torch.ones(2, 5)}, r"shape \[2, 5\]"),
        ({"vectors": torch.ones(0, 1, 5)}, r"shape \[0, 1, 5\]"),
        ({"scale": torch.ones(3)}, "2 vectors"),
        ({"names": ("x",)}, "2 vectors"),
        ({"names": ("x", "x")}, "x, x"),
        ({"vectors": torch.full((2, 1, 5), torch.nan)}, "NaN"),
        ({"scale": torch.tensor([1.0, torch.inf])}, "NaN"),
    ],
)
def test_invalid_directions_are_refused(changes: dict[str, Any], message: str) -> None:
    two: dict[str, Any] = {"vectors": torch.ones(2, 1, 5), "scale": torch.ones(2), "names": ("x", "y")}
    with pytest.raises(ValueError, match=message):
        Directions(**(two | changes))


def test_boundary_separates_high_and_low_scores() -> None:
    made = known_generator()
    latents = sample(made, range(300), psi=1.0)
    scores = (latents.ws[:, 0] - torch.arange(5.0)) @ AXES[3]
    for given in (scores, scores > 0.5):
        result = boundary(latents, given, "smile")
        assert (result.vectors[0, 0] @ AXES[3]) >= 0.97  # the sign is that of the scores
    torch.testing.assert_close(result.scale, torch.tensor([2.0]), rtol=0.3, atol=0)
    for few, given, message in (
        (latents[:19], scores[:19], "Got 19"),
        (latents, scores[:9], "a finite score for each"),
        (latents, torch.ones(300), "not all the same"),
        (latents, scores * torch.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            boundary(few, given, "smile")


def test_boundary_is_independent_of_the_scale_of_columns() -> None:
    ws = torch.randn(400, 1, 5, generator=rng(9)) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.3])
    normal = torch.tensor([0.1, -0.2, 0.5, 0.5, -0.7])
    result = boundary(Latents(ws.expand(-1, 6, -1)), ws[:, 0] @ normal, "smile")
    assert torch.cosine_similarity(result.vectors[0, 0], normal, 0) >= 0.98


# ---- files ----------------------------------------------------------------------------------------------------------


def test_directions_file_round_trip_is_exact(tmp_path: Path) -> None:
    made, path = known_generator(), tmp_path / "x.safetensors"
    for directions in (principal(made, 3), sefa(made, 2, layers=(0, 3))):
        save_directions(directions, path, {"by": "me"})
        for back in (load_directions(path), load_directions(path, made)):
            assert torch.equal(back.vectors, directions.vectors) and torch.equal(back.scale, directions.scale)
            assert back.names == directions.names and back.space == made.space()
    assert read_checkpoint(path).hints["provenance"] == '{"by": "me"}'
    with pytest.raises(ValueError, match="another generator"):
        load_directions(path, generator())
    save_directions(Directions(torch.ones(1, 3, 5), torch.ones(1), ("x",)), path)
    with pytest.raises(CheckpointError, match=r"\[3, 5\] rows and columns, expected \[1, 5\] or \[6, 5\]"):
        load_directions(path, made)
    write_safetensors(
        path, {"vectors": torch.ones(1, 1, 5)}, {"kind": "nada_directions", "version": "1", "space": "", "names": ["a"]}
    )
    with pytest.raises(CheckpointError, match="scale"):
        load_directions(path)


def test_foreign_directions_are_loaded(tmp_path: Path) -> None:
    made = generator()
    comp, std = torch.randn(7, 1, 5, generator=rng()), torch.rand(7, generator=rng()) + 0.5
    numpy.save(tmp_path / "age.npy", comp[0].numpy())
    torch.save(comp[0], tmp_path / "smile.pt")
    torch.save(comp[:1].expand(1, 6, 5).clone(), tmp_path / "pose.pt")
    torch.save({"mean": comp[0], "comp": comp, "std": std}, tmp_path / "pca.pt")
    numpy.savez_compressed(
        tmp_path / "pca.npz",
        act_comp=comp,
        act_stdev=std,
        lat_comp=comp,
        lat_stdev=std,
        lat_mean=comp[0],
        var_ratio=std,
    )
    one = torch.ones(1)
    for name, vectors, scale in (
        ("age.npy", comp[:1], one),
        ("smile.pt", comp[:1], one),
        ("pca.pt", comp, std),
        ("pose.pt", comp[:1].expand(1, 6, 5), one),
        ("pca.npz", comp, std),
    ):
        result = load_directions(tmp_path / name, made)
        assert torch.equal(result.vectors, vectors) and torch.equal(result.scale, scale), name
        assert result.space == made.space()
        with pytest.raises(ValueError, match="also needs its generator"):
            load_directions(tmp_path / name)
    assert load_directions(tmp_path / "age.npy", made).names == ("age",) and result.names[6] == "pca 6"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(1, 4), r"\[1, 4\], expected \[K, 5\]"),
        (torch.zeros(1, 3, 5), r"\[1, 3, 5\], expected"),
        (torch.zeros(0, 5), "vectors of shape"),
        (torch.zeros(1, 1, 1, 5), r"\[1, 1, 1, 5\]"),
        ({"a": torch.zeros(5), "b": torch.zeros(5)}, r"holds \['a', 'b'\]"),
        ({"std": torch.zeros(5)}, "no directions"),
        ({"comp": torch.zeros(3, 1, 5), "std": torch.zeros(2)}, "3 vectors"),
        (torch.full((1, 5), torch.nan), "NaN"),
    ],
)
def test_foreign_files_of_other_generators_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_directions(tmp_path / "x.pt", generator())


def test_axes_of_arrays_are_read_by_name_and_size(tmp_path: Path) -> None:
    """The generator has 6 rows of width 5. A direction is a column of `eigvec`, and [6, 5] is one direction of W+."""
    made, numbers = generator(), torch.randn(6 * 5, generator=rng())
    square, wide, tall = numbers[:25].view(5, 5), numbers[:15].view(3, 5), numbers[:10].view(5, 2)
    wplus = numbers.view(6, 5)
    for content, vectors in (
        ({"ckpt": "x.pt", "eigvec": square}, square.T[:, None]),
        ({"eigvec": tall, "eigval": torch.ones(2)}, tall.T[:, None]),
        ({"comp": wplus, "std": torch.ones(6)}, wplus[:, None]),
        ({"comp": wplus}, wplus[:, None]),
        (wide, wide[:, None]),
        (tall, tall.T[:, None]),
        (tall[:, :1], tall.T[:1, None]),
        (wplus, wplus[None]),
        ({"age": wplus}, wplus[None]),
        (wplus[None], wplus[None]),
        (numbers, wplus[None]),
        (numbers[None], wplus[None]),
        (numbers[:5], numbers[:5].view(1, 1, 5)),
        (torch.stack([wplus, -wplus]), torch.stack([wplus, -wplus])),
    ):
        torch.save(content, tmp_path / "x.pt")
        assert torch.equal(load_directions(tmp_path / "x.pt", made).vectors, vectors)


def test_direction_of_wplus_moves_each_row_by_its_own_vector(tmp_path: Path) -> None:
    made, vector = generator(), torch.randn(6, 5, generator=rng())
    vector[3:] = 0
    numpy.save(tmp_path / "age.npy", vector.numpy())
    latents = sample(made, [0])
    moved = edit(latents, load_directions(tmp_path / "age.npy", made)["age"], 2.0)
    torch.testing.assert_close(moved.ws - latents.ws, 2 * vector[None])


@pytest.mark.parametrize("size", [(5, 5), (5, 6), (6, 1, 5)])
def test_arrays_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, size: tuple[int, ...]) -> None:
    torch.save(torch.ones(size), tmp_path / "x.pt")
    with pytest.raises(UnsupportedCheckpointError, match=re.escape(f"{list(size)} can be")):
        load_directions(tmp_path / "x.pt", generator())


@pytest.mark.parametrize("content", [{"eigvec": torch.ones(4, 4)}, {"comp": torch.ones(5, 4)}, {"a.w": 1, "b.w": 2}])
def test_arrays_of_other_sizes_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content = {name: torch.ones(5) * value if isinstance(value, int) else value for name, value in content.items()}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UnsupportedCheckpointError, match=r"\[4, 4\]|\[5, 4\]|b\.w"):
        load_directions(tmp_path / "x.pt", generator())
