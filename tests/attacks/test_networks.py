"""Files of sound containers whose names, sizes and settings describe networks that no memory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nvidia_pickle
import pytest
import tensorflow_pickle
import tiny
import torch
from conftest import Refused
from hostile import safetensors
from safetensors.torch import save
from torch import Tensor

from nada_core.models.checkpoints import save_generator
from nada_core.models.stylegan2_layouts import to_rosinality

EMPTY = torch.zeros(1)


def described(tensors: dict[str, Tensor], **description: object) -> bytes:
    """One of our files."""
    return save(tensors, {name: v if isinstance(v, str) else json.dumps(v) for name, v in description.items()})


SPEC: dict[str, Any] = {
    "family": "stylegan2",
    "resolution": 16,
    "z_dim": 4,
    "w_dim": 4,
    "c_dim": 0,
    "mapping_layers": 2,
    "widths": [4, 4, 4],
    "clamp": None,
    "mapping_lr": 0.01,
}
SPECS: list[Any] = [
    {"widths": [10**9] * 3},
    {"widths": [10**30] * 3},
    {"widths": "444"},
    {"widths": {"4": 4, "8": 4, "16": 4}},
    {"z_dim": 10**400},
    {"w_dim": 1.5},
    {"c_dim": -1},
    {"mapping_layers": 10**9},
    {"resolution": 10**6},
    {"resolution": [16]},
    {"rng": 1},
    {"__class__": "x"},
    {"channel_base": 10**30, "widths": None},
    {"mapping_lr": "x"},
    {"family": ["stylegan2"]},
    {"family": "os.system"},
]


@pytest.mark.parametrize("changes", SPECS, ids=str)
def test_spec_of_our_file_is_not_trusted(refused: Refused, changes: dict[str, Any]) -> None:
    refused(described({"a": EMPTY}, spec=SPEC | changes, version=1))


@pytest.mark.parametrize(
    "spec",
    [
        "[" * 100_000,
        "1",
        "null",
        "[]",
        '{"family": 1e999}',
        "{",
        "NaN",
        json.dumps([{}] * 1_100_000),
        "[9" + ",9" * 5_000_000,
    ],
    ids=len,
)
def test_spec_that_is_no_object_is_refused(refused: Refused, spec: str) -> None:
    refused(described({"a": EMPTY}, spec=spec, version=1))


def test_nested_descriptions_are_refused(refused: Refused) -> None:
    deep = "[" * 100_000
    for reader, kind in (("domain", "nada_domain"), ("latents", "nada_latents"), ("directions", "nada_directions")):
        refused(described({"a": EMPTY}, kind=kind, version=deep, space="", provenance=deep), reader=reader)
        refused(described({"a": EMPTY}, kind=kind, version=1, space="", provenance=deep, names=deep), reader=reader)
    refused(described({"a": EMPTY}, provenance=deep), reader="provenance")
    refused(described({"rng": EMPTY}, kind="nada_run", identity="fingerprint", run=deep), reader="autosave")
    refused(
        described({"rng": EMPTY}, kind="nada_run", identity="fingerprint", run='{"index": Infinity}'), reader="autosave"
    )


@pytest.mark.parametrize(
    "run", ["[" * 100_000, "1", "{}", '{"index": 1, "history": 3}', '{"index": 1, "history": [1]}']
)
def test_damaged_autosaves_are_not_described(refused: Refused, run: str) -> None:
    for reader in ("autosave", "info"):
        refused(described({"rng": EMPTY}, kind="nada_run", identity="fingerprint", run=run), reader=reader)
    refused(save({"rng": EMPTY}, {"kind": "nada_run", "identity": "fingerprint"}), reader="info")
    for history in (torch.zeros(50 << 20, dtype=torch.uint8), torch.full((9_000_000,), 44, dtype=torch.uint8), EMPTY):
        tensors = {"rng": EMPTY.clone(), "history": history.clone()}
        refused(described(tensors, kind="nada_run", identity="fingerprint", run='{"index": 1}'), reader="autosave")


def test_names_that_claim_many_layers_build_none(refused: Refused) -> None:
    layers = {f"to_rgbs.{index}.conv.weight": EMPTY.clone() for index in range(20_000)}
    refused(save({"conv1.conv.modulation.weight": EMPTY, **layers}))
    layers = {f"style.{index}.weight": torch.zeros(1, 1) for index in range(20_000)}
    refused(save({"conv1.conv.modulation.weight": torch.zeros(1, 1), **layers}))
    units = {f"body.{index}.res_layer.1.weight": torch.zeros(1, 1, 1, 1) for index in range(20_000)}
    face = {"input_layer.0.weight": torch.zeros(1, 3, 1, 1), "output_layer.3.weight": torch.zeros(1, 1), **units}
    refused(save(face), reader="identity")


def test_heads_of_an_encoder_are_bounded(tmp_path: Path, refused: Refused) -> None:
    decoder = {f"decoder.{name}": value for name, value in to_rosinality(tiny.generator(z_dim=5)).items()}
    unit = {"body.0.res_layer.1.weight": torch.zeros(1, 1, 1, 1), "input_layer.0.weight": torch.zeros(1, 3, 1, 1)}
    rows = {f"styles.{index}.linear.weight": torch.zeros(5, 5) for index in range(5_000)}
    convs = {f"styles.0.convs.{index}.weight": torch.zeros(1) for index in range(5_000)}
    for heads in (rows, convs | {"styles.0.linear.weight": torch.zeros(5, 5)}):
        state = decoder | {f"encoder.{name}": value for name, value in (unit | heads).items()}
        torch.save({"state_dict": state, "opts": {"encoder_type": "GradualStyleEncoder"}}, tmp_path / "x.pt")
        refused(tmp_path / "x.pt", reader="encoder")


def test_settings_of_modules_allocate_nothing(refused: Refused) -> None:
    generator = tiny.generator()
    network = nvidia_pickle.network(generator)
    blocks = network.reduced[1][0]["state"]["_modules"]["synthesis"].reduced[1][0]["state"]["_modules"]
    silent = nvidia_pickle.persistent("SynthesisLayer", {"use_noise": False, "_parameters": {}, "_modules": {}}, "")
    for index in range(1024, 3000):
        blocks[f"b{index}"] = nvidia_pickle.persistent("Block", {"_modules": {"conv0": silent}, "_parameters": {}}, "")
    refused(_dumped(network))
    values = {f"synthesis/{2**power}x{2**power}/ToRGB/weight": EMPTY.numpy() for power in range(2, 14)}
    values["synthesis/4x4/Conv/mod_weight"] = EMPTY.numpy()
    refused(_dumped(tensorflow_pickle.network(values, {"use_noise": False})))


def _dumped(content: object) -> bytes:
    from hostile import dumps

    return dumps({"G_ema": content})


def test_weights_that_share_memory_are_refused(tmp_path: Path, refused: Refused) -> None:
    whole = torch.zeros(9_000_000)
    generator = tiny.generator(widths=[1000, 300, 300])
    state = {name: whole[: value.numel()].view(value.shape) for name, value in generator.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")


def test_products_of_a_domain_are_bounded(refused: Refused) -> None:
    factors = {"a.left": torch.zeros(20_000, 1), "a.right": torch.zeros(1, 20_000)}
    for shape in ([20_000, 20_000, 1, 1], [0], [-1], "x", {"a": 1}, [1, 1, 1, 1]):
        content = described(factors, kind="nada_domain", version=2, space="", shapes={"a": shape})
        refused(content, "DamagedCheckpointError", "domain")


def test_files_of_every_kind_are_refused_by_the_other_readers(tmp_path: Path, refused: Refused) -> None:
    save_generator(tiny.generator(), tmp_path / "x.safetensors", {})
    for reader, error in (
        ("domain", "UnsupportedCheckpointError"),
        ("identity", "UnsupportedCheckpointError"),
        ("guide", "GuideError"),
    ):
        refused(tmp_path / "x.safetensors", error, reader)
    refused(safetensors({"__metadata__": {"kind": "nada_unknown"}}), "UnsupportedCheckpointError")
