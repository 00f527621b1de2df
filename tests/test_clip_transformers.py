"""CLIP in transformers' layout: equal embeddings, gradients, files, image towers alone, and other families.

fixtures/transformers_clip.safetensors has a tiny CLIP model of transformers with random weights, and what transformers
computes with it. fixtures/make_transformers_clip.py wrote it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import changed, copied, generator
from torch import Tensor

from nada_core import AdaptConfig, ImageShift, LayerChoice, PairShift, TextShift, adapt
from nada_core.adaptation.provenance import run_fingerprint
from nada_core.cli import main as cli
from nada_core.io.checkpoint_file import read_checkpoint
from nada_core.models.clip import ClipGuide, GuideError
from nada_core.models.clip_config import fitting_architectures
from nada_core.models.clip_loading import load_guide
from nada_core.models.clip_transformers import guide_from_vision_tower, to_open_clip
from nada_core.models.file_kinds import describe

FIXTURE = Path(__file__).parent / "fixtures" / "transformers_clip.safetensors"
ACTIVATIONS = ("quick_gelu", "gelu")
CONFIG = {  # of open_clip
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 6, "vocab_size": 32, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def model(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in recorded.items() if name.startswith("model.")}


@pytest.fixture(scope="module")
def vision(model: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in model.items() if name.startswith("vis")}


def settings(activation: str = "gelu") -> dict[str, Any]:
    return {"num_attention_heads": 2, "hidden_act": activation}


@pytest.fixture(scope="module")
def guide(vision: dict[str, Tensor]) -> ClipGuide:
    return guide_from_vision_tower(vision, settings())


def noise(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def architecture(folder: Path, name: str, **changes: Any) -> Path:
    """Write an open_clip config; open_clip keeps each name for the whole process."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


# ---- embeddings and gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_image_embeddings_equal_those_of_transformers(
    recorded: dict[str, Tensor], vision: dict[str, Tensor], activation: str
) -> None:
    encode: Any = guide_from_vision_tower(vision, settings(activation)).model
    torch.testing.assert_close(
        encode.encode_image(recorded["pixels"]), recorded[f"{activation}.images"], atol=1e-5, rtol=0
    )
    assert (recorded["gelu.images"] - recorded["quick_gelu.images"]).abs().max() > 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_whole_model_equals_that_of_transformers(
    recorded: dict[str, Tensor], model: dict[str, Tensor], activation: str
) -> None:
    whole = open_clip.CLIP(**CONFIG, quick_gelu=activation == "quick_gelu").eval()
    whole.load_state_dict(to_open_clip(model))
    for got, kind in (
        (whole.encode_image(recorded["pixels"]), "images"),
        (whole.encode_text(recorded["tokens"]), "texts"),
    ):
        torch.testing.assert_close(got, recorded[f"{activation}.{kind}"], atol=1e-5, rtol=0)


def test_open_clip_names_give_the_same_guide(vision: dict[str, Tensor], guide: ClipGuide) -> None:
    other = guide_from_vision_tower(to_open_clip(vision), settings())
    assert other.fingerprint == guide.fingerprint and other.dim == 12 and other.size == (16, 16)


def test_gradients_equal_finite_differences(vision: dict[str, Tensor]) -> None:
    visual: Any = guide_from_vision_tower(vision, settings()).model.visual.double()
    x = noise(1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.normalize(visual(x), dim=-1), x, fast_mode=True)
    (gradient,) = torch.autograd.grad(F.normalize(visual(x), dim=-1)[0, 0], x)
    assert gradient.abs().min() > 0


def test_gradient_reaches_images_of_any_size(guide: ClipGuide) -> None:
    x = torch.nn.functional.interpolate(noise(), scale_factor=3).requires_grad_()
    guide.encode_images(x)[:, 0].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.ne(0).any()


def test_given_tensors_are_not_changed(vision: dict[str, Tensor]) -> None:
    before = copied(vision)
    guide = guide_from_vision_tower(vision, settings())
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1)
    assert not changed(before, vision) and all(not value.requires_grad for value in vision.values())


def test_inference_tensors_give_a_differentiable_guide(vision: dict[str, Tensor]) -> None:
    with torch.inference_mode():  # as ComfyUI loads them
        loaded = {name: value.clone() for name, value in vision.items()}
    x = noise().requires_grad_()
    guide_from_vision_tower(loaded, settings()).encode_images(x).sum().backward()
    assert x.grad is not None and x.grad.ne(0).any()


def test_global_random_state_is_kept(vision: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    guide_from_vision_tower(vision, settings())
    assert torch.equal(before, torch.get_rng_state())


# ---- sizes and settings -------------------------------------------------------------------------------------------


def test_preprocessing_is_that_of_the_config(vision: dict[str, Tensor], guide: ClipGuide) -> None:
    assert guide.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert guide.std.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_STD)
    half = guide_from_vision_tower(vision, {**settings(), "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    assert half.mean.flatten().tolist() == [0.5] * 3 and half.std.flatten().tolist() == [0.25] * 3
    assert half.fingerprint != guide.fingerprint


def test_fingerprint_depends_on_heads_and_activation(vision: dict[str, Tensor], guide: ClipGuide) -> None:
    others = [settings("quick_gelu"), {**settings(), "num_attention_heads": 4}]
    found = {guide_from_vision_tower(vision, one).fingerprint for one in others} | {guide.fingerprint}
    assert len(found) == 3
    other = {name: value + 1 if "proj" in name else value for name, value in vision.items()}
    assert guide_from_vision_tower(other, settings()).fingerprint not in found


@pytest.mark.parametrize(
    ("width", "dim", "heads", "activation"),
    [(64, 512, 1, "QuickGELU"), (128, 768, 2, "QuickGELU"), (1280, 1024, 16, "GELU"), (64, 640, 1, "GELU")],
)
def test_sizes_of_published_models_decide_without_a_config(width: int, dim: int, heads: int, activation: str) -> None:
    tower = open_clip.transformer.VisionTransformer(16, 8, width, 1, 1, 0.5, output_dim=dim)
    guide = guide_from_vision_tower({f"visual.{name}": value for name, value in tower.state_dict().items()})
    (block,) = guide.model.visual.transformer.resblocks  # type: ignore[union-attr]
    assert block.attn.num_heads == heads and type(block.mlp.gelu).__name__ == activation
    assert str(width) in guide.name


def test_tower_without_projection_gives_its_features(vision: dict[str, Tensor], model: dict[str, Tensor]) -> None:
    bare = {name: value for name, value in vision.items() if name != "visual_projection.weight"}
    features = guide_from_vision_tower(bare, settings())
    assert features.dim == 32
    weight = vision["visual_projection.weight"].float()
    x = noise()
    encode: Any = features.model.encode_image
    whole: Any = guide_from_vision_tower(model, settings()).model.encode_image
    torch.testing.assert_close(encode(features.prepare(x)) @ weight.T, whole(features.prepare(x)), atol=1e-5, rtol=0)
    # ComfyUI 0.20 gives the tower of LLaVA a projection of arbitrary memory.
    llava = {**vision, "multi_modal_projector.linear_1.weight": torch.zeros(4, 32)}
    assert guide_from_vision_tower(llava, settings()).fingerprint == features.fingerprint


# ---- image-only guides --------------------------------------------------------------------------------------------


def test_image_only_guide_refuses_text(guide: ClipGuide) -> None:
    for act in (lambda: guide.encode_text(["photo"]), lambda: TextShift("photo", "sketch").direction(guide)):
        with pytest.raises(ValueError, match="no text tower"):
            act()


@pytest.mark.parametrize("shift", [ImageShift(noise(3)), PairShift(noise(2), -noise(2))], ids=["images", "pairs"])
def test_image_only_guide_adapts_to_images(guide: ClipGuide, shift: ImageShift | PairShift) -> None:
    config = AdaptConfig(steps=2, batch=2, layers=LayerChoice(mode="all"))
    result = adapt(generator(), guide, shift, config)
    before, after = generator().state_dict(), result.generator.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())


def test_run_fingerprint_depends_on_the_weights_of_the_guide(vision: dict[str, Tensor], guide: ClipGuide) -> None:
    shift, config = ImageShift(noise(1)), AdaptConfig(steps=2)
    other = guide_from_vision_tower({n: v + 1 if "proj" in n else v for n, v in vision.items()}, settings())
    renamed = guide_from_vision_tower(vision, settings(), name="another name")
    found = [run_fingerprint(generator(), one, shift, config) for one in (guide, renamed, other)]
    assert found[0] == found[1] != found[2]


# ---- files --------------------------------------------------------------------------------------------------------


def test_file_of_a_whole_model_loads(tmp_path: Path, model: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    save_file(model, tmp_path / "model.safetensors")
    loaded = load_guide(tmp_path / "model.safetensors", architecture(tmp_path, "nada-test-transformers"))
    encode: Any = loaded.model
    torch.testing.assert_close(encode.encode_image(recorded["pixels"]), recorded["gelu.images"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encode.encode_text(recorded["tokens"]), recorded["gelu.texts"], atol=1e-5, rtol=0)


def test_file_of_an_image_tower_loads(tmp_path: Path, vision: dict[str, Tensor], guide: ClipGuide) -> None:
    config = architecture(tmp_path, "nada-test-vision")
    save_file(vision, tmp_path / "a.safetensors")
    save_file({name: value.contiguous() for name, value in to_open_clip(vision).items()}, tmp_path / "b.safetensors")
    for name in "ab":
        loaded = load_guide(tmp_path / f"{name}.safetensors", config)
        assert loaded.fingerprint == guide.fingerprint
        with pytest.raises(ValueError, match="no text tower"):
            loaded.encode_text(["photo"])


def test_file_of_another_architecture_is_refused(tmp_path: Path, vision: dict[str, Tensor]) -> None:
    save_file(vision, tmp_path / "a.safetensors")
    wide = architecture(tmp_path, "nada-test-wide", vision_cfg={**CONFIG["vision_cfg"], "width": 48})
    with pytest.raises(GuideError, match="nada-test-wide"):
        load_guide(tmp_path / "a.safetensors", wide)


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ((768, 12, 32, 224, 512), {"ViT-B-32", "ViT-B-32-quickgelu"}),
        ((1024, 24, 14, 224, 768), {"ViT-L-14", "ViT-L-14-quickgelu"}),
        ((1280, 32, 14, 224, 1024), {"ViT-H-14", "ViT-H-14-quickgelu"}),
        ((1664, 48, 14, 224, 1280), {"ViT-bigG-14", "ViT-bigG-14-quickgelu"}),
        ((33, 2, 8, 16, 12), set()),
    ],
)
def test_architectures_are_found_by_the_sizes_of_the_image_tower(size: tuple[int, ...], names: set[str]) -> None:
    found = fitting_architectures(dict(zip(("width", "layers", "patch_size", "image_size", "dim"), size, strict=True)))
    assert names <= set(found) and bool(names) == bool(found)


def test_info_names_the_kind_of_clip_file(
    tmp_path: Path, vision: dict[str, Tensor], model: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, state in (("tower", vision), ("whole", model), ("text", without(model, "text_projection"))):
        save_file(state, tmp_path / f"{name}.safetensors")
    assert cli.main(["info", str(tmp_path / "tower.safetensors")]) == 0
    assert "weights of the image tower of a CLIP model" in capsys.readouterr().out
    assert cli.main(["info", str(tmp_path / "whole.safetensors")]) == 0
    assert "weights of a CLIP model" in capsys.readouterr().out
    assert cli.main(["info", str(tmp_path / "text.safetensors")]) == 2
    assert "text_projection" in capsys.readouterr().err


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("part", "named"),
    [("text_projection", "text_projection"), ("vis", "text tower"), ("layers.1.self_attn.k_proj", "k_proj")],
)
def test_incomplete_files_are_refused_by_name(tmp_path: Path, model: dict[str, Tensor], part: str, named: str) -> None:
    save_file(without(model, part), tmp_path / "part.safetensors")
    with pytest.raises(GuideError, match=named) as refused:
        load_guide(tmp_path / "part.safetensors", architecture(tmp_path, "nada-test-part"))
    assert "part.safetensors" in str(refused.value)


# ---- other families and broken towers -----------------------------------------------------------------------------

DINOV2 = {"encoder.layer.0.layer_scale1.lambda1": torch.ones(4), "embeddings.cls_token": torch.ones(1, 1, 4)}


def test_other_families_are_refused_by_name(vision: dict[str, Tensor], tmp_path: Path) -> None:
    siglip = {**vision, "vision_model.embeddings.patch_embedding.bias": torch.zeros(32)}
    cases: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        (DINOV2, {}, "DINOv2"),
        (siglip, {}, "SigLIP"),
        ({"layer.0.attention.o_proj.bias": torch.ones(4)}, {}, "DINOv3"),
        (vision, {"model_type": "siglip2_vision_model"}, "siglip2_vision_model"),
        ({"weight": torch.ones(3)}, {}, "conv1.weight"),
    ]
    for state, config, named in cases:
        with pytest.raises(GuideError, match=named):
            guide_from_vision_tower(state, config)
    for state, named in ((DINOV2, "DINOv2"), (siglip, "SigLIP")):
        save_file(state, tmp_path / "other.safetensors")
        assert named in describe(read_checkpoint(tmp_path / "other.safetensors"), "as a guide")
        with pytest.raises(GuideError, match=named):
            load_guide(tmp_path / "other.safetensors", architecture(tmp_path, "nada-test-other-family"))


def test_broken_towers_are_refused(vision: dict[str, Tensor]) -> None:
    cases: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        (without(vision, "post_layernorm"), {}, "ln_post.weight"),
        (without(vision, "layers.1.mlp.fc1.bias"), {}, "c_fc.bias"),
        ({**vision, "vision_model.embeddings.position_embedding.weight": torch.zeros(6, 32)}, {}, r"\[6, 32\]"),
        ({**vision, "vision_model.embeddings.position_embedding.weight": torch.tensor(1.0)}, {}, r"\[\]"),
        (
            {**vision, "vision_model.embeddings.patch_embedding.weight": torch.zeros(32, 3, 8, 4)},
            {},
            r"\[32, 3, 8, 4\]",
        ),
        ({**vision, "vision_model.embeddings.patch_embedding.weight": torch.tensor(1.0)}, {}, r"conv1.*\[\]"),
        ({**vision, "visual_projection.weight": torch.zeros(3)}, {}, r"visual_projection.*\[3\]"),
        ({**vision, "vision_model.encoder.layers.0.self_attn.k_proj.bias": torch.zeros(3)}, {}, "q_proj.bias"),
        (vision, {"hidden_act": "relu"}, "'relu'"),
        (vision, {"num_attention_heads": -2}, "-2 heads"),
        (vision, {"num_attention_heads": 3}, "3 heads"),
    ]
    for state, config, named in cases:
        with pytest.raises(GuideError, match=named):
            guide_from_vision_tower(state, {**settings(), **config})
