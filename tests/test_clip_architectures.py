"""Guides of open_clip's other architectures and of hf-hub names, on tiny networks with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from nada_core import AdaptConfig, ClipGuide, GuideError, LayerChoice, TextShift, adapt, load_guide

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}


def timm(name: str, size: int, pool: str = "", proj: str = "linear", dim: int = 16, **text: Any) -> dict[str, Any]:
    """A model config of open_clip with an image tower of timm."""
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}
    return {"embed_dim": dim, "vision_cfg": vision, "text_cfg": {**TEXT, **text}, "custom_text": True}


#: One small network of each family.
FAMILIES = {
    # Not "siglip": open_clip gives models of that name a tokenizer of the package transformers.
    "sigmoid": timm("test_vit", 160, "map", "none", dim=64, **SIGLIP_TEXT) | {"init_logit_bias": -10},
    "eva": timm("eva02_tiny_patch14_224", 224, "token"),
    "convnext": timm("test_convnext", 32),
    "mobileclip": timm("fastvit_mci0", 64, "avg"),
}


def noise(n: int, size: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights_of(config: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    built = model(**{key: value for key, value in config.items() if key != "custom_text"})
    return {name: value.clone().contiguous() for name, value in built.state_dict().items()}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def guide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipGuide:
    folder, name = tmp_path_factory.mktemp("models"), f"nada-test-{request.param}"
    (folder / f"{name}.json").write_text(json.dumps(FAMILIES[request.param]))
    open_clip.add_model_config(folder)
    save_file(weights_of(FAMILIES[request.param]), folder / "weights.safetensors")
    return load_guide(folder / "weights.safetensors", name)


def test_gradient_equals_a_finite_difference(guide: ClipGuide) -> None:
    """In float64 and for the prepared image: the guide itself computes in float32."""
    visual: Any = guide.model.visual
    x = guide.prepare(noise(1, 48)).double().requires_grad_()
    visual.double()
    try:
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(torch.nn.functional.normalize(visual(x), dim=-1)[0, 0], x)
        ahead, behind = (torch.nn.functional.normalize(visual(x + s * 1e-6 * way), dim=-1)[0, 0] for s in (1, -1))
        torch.testing.assert_close((gradient * way).sum(), (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-9)
        assert gradient.abs().max() > 0
    finally:
        visual.float()


def test_guide_adapts_a_generator(guide: ClipGuide) -> None:
    assert guide.encode_text(["photo", "sketch"]).shape == (2, guide.dim)
    config = AdaptConfig(steps=2, batch=2, layers=LayerChoice(mode="all"))
    result = adapt(tiny.generator(), guide, TextShift("photo", "sketch"), config)
    before, after = tiny.generator().state_dict(), result.generator.state_dict()
    assert tiny.changed(before, after) and all(value.isfinite().all() for value in after.values())


# ---- the Hugging Face hub -----------------------------------------------------------------------------------------

PLAIN = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Offer files as those of the repository someone/tiny; every other repository is offline."""

    def download(model_id: str, filename: str | None = None, cache_dir: str | None = None, **_: Any) -> str:
        path = tmp_path / (filename or "open_clip_model.safetensors")
        if model_id != "someone/tiny" or not path.is_file():
            raise FileNotFoundError(f"Failed to download file ({filename}) for {model_id}")
        return str(path)

    for place in ("open_clip.pretrained", "open_clip.factory"):
        monkeypatch.setattr(f"{place}.download_pretrained_from_hf", download)

    def write(config: Any, weights: bool = True) -> Path:
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        if weights:
            save_file(weights_of(PLAIN), tmp_path / "open_clip_model.safetensors")
        return tmp_path

    return write


def test_hub_model_has_its_own_activation_and_normalization(publish: Publish, tmp_path: Path) -> None:
    publish({"model_cfg": PLAIN, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    guide = load_guide("hf-hub:someone/tiny")
    assert guide.name == "hf-hub:someone/tiny" and guide.dim == 16
    assert guide.mean.flatten().tolist() == [0.5] * 3 and guide.std.flatten().tolist() == [0.25] * 3
    names = {type(module).__name__ for module in guide.modules()}
    assert "QuickGELU" in names and "GELU" not in names
    (tmp_path / "nada-test-hub.json").write_text(json.dumps(PLAIN))
    shutil.copy(tmp_path / "open_clip_model.safetensors", tmp_path / "copy.safetensors")
    local = load_guide(tmp_path / "copy.safetensors", tmp_path / "nada-test-hub.json")
    assert torch.equal(local.encode_text(["photo"]), guide.encode_text(["photo"]))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {"model_cfg": {**PLAIN, "text_cfg": {**TEXT, "tokenizer_kwargs": {"trust_remote_code": True}}}},
            "trust_remote",
        ),
        ({"model_cfg": {**PLAIN, "text_cfg": {**TEXT, "hf_tokenizer_name": "local-dir:/etc"}}}, "local-dir:/etc"),
        ({"architectures": ["CLIPModel"]}, "model_cfg"),
        ([], "model_cfg"),
    ],
)
def test_hub_config_that_is_unsafe_or_no_open_clip_is_refused(
    publish: Publish, monkeypatch: pytest.MonkeyPatch, config: Any, named: str
) -> None:
    publish(config)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("the model was built"))
    with pytest.raises(GuideError, match=f"someone/tiny.*{named}"):
        load_guide("hf-hub:someone/tiny")


def test_offline_hub_is_named(publish: Publish) -> None:
    with pytest.raises(GuideError, match="hf-hub:another/model could not be downloaded"):
        load_guide("hf-hub:another/model")
    publish({"model_cfg": PLAIN}, weights=False)
    with pytest.raises(GuideError, match="hf-hub:someone/tiny could not be downloaded"):
        load_guide("hf-hub:someone/tiny")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:tiny", "hf-hub:../tiny", "hf-hub:a/b/c", "hf-hub:a/b c"])
def test_malformed_hub_names_are_refused(name: str) -> None:
    with pytest.raises(GuideError, match="OWNER/NAME"):
        load_guide(name)
