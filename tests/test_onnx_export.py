"""The ONNX export: equal images, its metadata, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nada_core import CheckpointError, Domain, Generator, export_onnx, load_generator, save_domain
from nada_core.cli.main import main
from nada_core.io.errors import DamagedCheckpointError
from nada_core.io.onnx_metadata import read_onnx_metadata
from nada_core.models.onnx_export import KIND, OPSET, onnx_paths
from tests import tiny

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "conditional": {"c_dim": 3},
    "clamped": {"clamp": 0.7},
    "one mapping layer": {"mapping_layers": 1, "mapping_lr": 1.0},
    "config-f": {"resolution": 64, "z_dim": 512, "w_dim": 512, "mapping_layers": 8, "widths": [64, 48, 32, 24, 16]},
}
LIMIT = 1e-4


def largest_error(generator: Generator, path: Path, count: int, psi: torch.Tensor) -> float:
    """Run both models in onnxruntime and return the largest difference of latents and images to PyTorch."""
    runtime = pytest.importorskip("onnxruntime")
    synthesis, mapping = (
        runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"]) for file in onnx_paths(path)
    )
    inputs = {"z": torch.randn(count, generator.z_dim, generator=tiny.rng(count)), "psi": psi}
    if generator.c_dim:
        inputs["label"] = torch.eye(generator.c_dim)[torch.arange(count) % generator.c_dim]
    with torch.no_grad():
        w = generator.map(inputs["z"], inputs.get("label"))
        expected = generator.w_avg + psi[:, None] * (w - generator.w_avg)
        images = generator.synthesize(expected)
    (ws,) = mapping.run(["ws"], {name: value.numpy() for name, value in inputs.items()})
    (pixels,) = synthesis.run(["images"], {"ws": ws})
    assert pixels.shape == (count, 3, generator.resolution, generator.resolution)
    return max(
        (torch.from_numpy(ws) - expected).abs().max().item(), (torch.from_numpy(pixels) - images).abs().max().item()
    )


@pytest.fixture(autouse=True)
def _needs_onnx() -> None:
    pytest.importorskip("onnx")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_models_equal_pytorch(name: str, tmp_path: Path) -> None:
    generator = tiny.generator(**ARCHITECTURES[name])
    path = tmp_path / "a.onnx"
    assert export_onnx(generator, path) == onnx_paths(path)
    for count in (1, 3):
        assert largest_error(generator, path, count, torch.tensor([0.7])) < LIMIT


def test_onnx_truncation_of_single_rows_equals_cutoff(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    generator, path = tiny.generator(), tmp_path / "a.onnx"
    _, mapping = export_onnx(generator, path)
    z, psi = torch.randn(2, generator.z_dim, generator=tiny.rng()), torch.tensor([0.5] * 4 + [1.0] * 2)
    (ws,) = runtime.InferenceSession(str(mapping)).run(None, {"z": z.numpy(), "psi": psi.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(ws), generator.map(z, psi=0.5, cutoff=4))
    assert largest_error(generator, path, 2, psi) < LIMIT


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_onnx_models_equal_pytorch_at_other_opsets(age: str, tmp_path: Path) -> None:
    opset = 18 if age == "oldest" else pytest.importorskip("onnx").defs.onnx_opset_version()
    generator, path = tiny.generator(), tmp_path / "a.onnx"
    export_onnx(generator, path, opset=opset)
    assert read_onnx_metadata(path)["opset"] == str(opset)
    try:
        error = largest_error(generator, path, 2, torch.tensor([1.0]))
    except Exception as refusal:
        if age == "oldest" or "version" not in str(refusal):
            raise
        pytest.skip(f"this onnxruntime is older than onnx: {refusal}")
    assert error < LIMIT


def test_onnx_export_of_the_built_in_generator_with_a_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = load_generator("portraits")
    name = "synthesis.b16.conv0.weight"
    change = (
        0.3 * source.get_parameter(name).std() * torch.randn(source.get_parameter(name).shape, generator=tiny.rng())
    )
    domain = Domain({name: change}, source.space(), {})
    save_domain(domain, tmp_path / "domain.safetensors")
    path = tmp_path / "a.onnx"
    command = ["convert", "portraits", str(path), "--domain", str(tmp_path / "domain.safetensors"), "--strength", "0.5"]
    assert main(command) == 0
    assert capsys.readouterr().out.split() == ["wrote", str(path), "wrote", str(onnx_paths(path)[1])]
    assert largest_error(domain.apply(source, 0.5), path, 1, torch.tensor([0.7])) < LIMIT
    assert largest_error(source, path, 1, torch.tensor([0.7])) > 100 * LIMIT

    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "64 x 64" in text and f"ws [N, {source.num_ws}, {source.w_dim}]" in text and "images [N, 3, 64, 64]" in text
    assert '"domain.safetensors"' in text and source.space()[:12] in text
    assert main(["convert", "portraits", str(path)]) == 2
    assert str(path) in capsys.readouterr().err  # it exists


def test_info_describes_onnx_models_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph, producer_name="pytorch", opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.helper.set_model_props(model, {"author": "another tool"})
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert main(["info", str(tmp_path / "a.onnx")]) == 0
    assert {"pytorch,", "17", "author"} <= set(capsys.readouterr().out.split())


def test_onnx_metadata_of_damaged_files_is_refused(tmp_path: Path) -> None:
    export_onnx(tiny.generator(), tmp_path / "a.onnx")
    content, cut = (tmp_path / "a.onnx").read_bytes(), tmp_path / "cut.onnx"
    metadata = read_onnx_metadata(tmp_path / "a.onnx")
    assert metadata["kind"] == KIND and metadata["opset"] == str(OPSET)
    for size in range(0, content.rindex(KIND.encode()), 997):
        cut.write_bytes(content[:size])
        with pytest.raises(DamagedCheckpointError, match="cut.onnx"):
            read_onnx_metadata(cut)
    for bytes_ in (b"\xff" * 11, b"\x08\x0a\x42\x02\x10", b"\x09" + bytes(8), b"\x08\x0a\x72\x01\x00", b"<html>"):
        cut.write_bytes(bytes_)
        with pytest.raises(DamagedCheckpointError, match="cut.onnx"):
            read_onnx_metadata(cut)
    with pytest.raises(CheckpointError, match="missing.onnx"):
        read_onnx_metadata(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("changes", "match"), [({"opset": 17}, "17"), ({"opset": 999}, "999"), ({"path": "a.bin"}, "a.bin")]
)
def test_onnx_export_refuses_arguments(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    values = {"path": "a.onnx", "opset": OPSET} | changes
    with pytest.raises(ValueError, match=match):
        export_onnx(tiny.generator(), tmp_path / values["path"], opset=values["opset"])
    assert not list(tmp_path.iterdir())


def test_onnx_export_refuses_other_families_and_nan(tmp_path: Path) -> None:
    class Other(Generator):
        family = "stylegan3"

    with pytest.raises(ValueError, match="stylegan3"):
        export_onnx(Other(), tmp_path / "a.onnx")
    broken = tiny.generator()
    with torch.no_grad():
        broken.get_parameter("synthesis.b8.conv0.bias")[0] = torch.nan
    with pytest.raises(ValueError, match="b8.conv0.bias"):
        export_onnx(broken, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_export_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="pip install onnx"):
        export_onnx(tiny.generator(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
