"""Nodes for CLIP models of ComfyUI: guides of a CLIP_VISION, shifts of a CONDITIONING."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host.guards import differences, snapshot
from pack_world import World
from safetensors.torch import load_file
from test_clip_transformers import DINOV2, FIXTURE, settings
from tiny import rng
from torch import Tensor, nn


class ClipVision:
    """The parts of ComfyUI's ClipVisionModel that the node may use; its own forward pass is not one of them."""

    def __init__(self, state: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.model = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in state.items()})
        self.config = config

    def get_sd(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): value for name, value in self.model.items()}


@pytest.fixture
def clip_vision() -> ClipVision:
    state = load_file(FIXTURE)
    tower = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.vis")}
    with torch.inference_mode():  # as ComfyUI loads it
        return ClipVision(tower, {**settings(), "model_type": "clip_vision_model", "image_size": 16})


def conditioning(length: int, *seeds: int, **changes: Any) -> list[list[Any]]:
    """A CONDITIONING with a prompt for each seed."""
    return [
        [torch.zeros(1, 77, 8), {"pooled_output": torch.randn(1, length, generator=rng(seed)), **changes}]
        for seed in seeds
    ]


def test_clip_vision_guides_a_training_to_images(either: World, clip_vision: ClipVision) -> None:
    before = snapshot(clip_vision)
    (guide,) = either.call("GuideFromClipVision", clip_vision=clip_vision)
    (shift,) = either.call("ShiftFromImages", images=torch.rand(2, 32, 32, 3))
    generator, _, training = either.adapt(guide=guide, shift=shift)
    assert differences(before, snapshot(clip_vision)) == []
    assert generator.space() == either.generator.space() and len(training["loss"]) == 2
    ((encoder, weight),) = guide
    assert weight == 1.0 and encoder.dim == 12 and encoder.mean.device.type == "cpu"


def test_clip_vision_can_be_combined_and_judge(world: World, clip_vision: ClipVision) -> None:
    (guide,) = world.call("GuideFromClipVision", clip_vision=clip_vision)
    (shift,) = world.call("ShiftFromImages", images=torch.rand(1, 32, 32, 3))
    because = world.call("AdaptGenerator", **world.training(shift=shift), judge=guide)[3]
    assert "CLIP Vision" in because
    (both,) = world.call("CombineGuides", guides=[world.guide, guide])
    assert len(world.adapt(guide=both, shift=shift)[2]["loss"]) == 2


def test_text_with_an_image_guide_is_refused_before_the_training(world: World, clip_vision: ClipVision) -> None:
    (guide,) = world.call("GuideFromClipVision", clip_vision=clip_vision)
    with pytest.raises(ValueError, match="no text tower"):
        world.call("AdaptGenerator", **world.training(guide=guide))
    assert not any(bar.ticks for bar in world.host.bars)
    with pytest.raises(ValueError, match="no text tower"):
        world.call("CheckPrompts", guide=guide, shift=world.shift)


@pytest.mark.parametrize(
    ("model_type", "named"), [("dinov2", "DINOv2"), ("siglip_vision_model", "siglip_vision_model")]
)
def test_other_clip_vision_models_are_refused_by_name(
    world: World, clip_vision: ClipVision, model_type: str, named: str
) -> None:
    other = ClipVision(DINOV2 if model_type == "dinov2" else clip_vision.get_sd(), {"model_type": model_type})
    with pytest.raises(ValueError, match=f"{named}.*expected CLIP"):
        world.call("GuideFromClipVision", clip_vision=other)


def test_load_guide_reads_other_open_clip_models_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    loaded = world.guide[0][0]
    monkeypatch.setattr(world.module("nodes.load"), "load_guide", lambda name, *_: names.append(name) or loaded)
    given = "  hf-hub:chs20/fare2-clip "
    world.call("LoadGuide", guide="another open_clip model", model=given)
    world.call("LoadGuide", guide="another open_clip model")
    assert names == [given.strip(), "ViT-B-16-SigLIP:webli"]


def test_misspelled_model_names_are_refused(world: World) -> None:
    for name in ("hf-hub:fare", "ViT-B-16-SigLIP:web", ""):
        with pytest.raises(ValueError, match=repr(name) if ":" not in name else name.split(":")[1]):
            world.call("LoadGuide", guide="another open_clip model", model=name)


@pytest.fixture
def large(world: World) -> Any:
    """A guide with the sizes of ViT-H/14, which is never run."""
    model = nn.Module()
    tower = SimpleNamespace(width=1280, layers=32)
    model.visual = SimpleNamespace(image_size=8, image_mean=(0.5,) * 3, image_std=(0.5,) * 3, transformer=tower)
    return ((world.core.ClipGuide("large", model, None, 1024), 1.0),)


def test_conditioning_gives_a_shift(world: World, large: Any) -> None:
    source, target = conditioning(1024, 1, 2), conditioning(1024, 3, 4)
    before = snapshot((source, target))
    (shift,) = world.call("ShiftFromConditioning", guide=large, source=source, target=target)
    assert differences(before, snapshot((source, target))) == []
    assert shift.direction(large[0][0]).shape == (1, 1024) and len(shift.source) == 2


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        (conditioning(768, 1), conditioning(768, 2), "768.*Flux"),
        (conditioning(1280, 1), conditioning(1280, 2), "ViT-bigG"),
        (conditioning(1024, 1), conditioning(1024, 1), "equal"),
        (conditioning(1024, 1, 2), conditioning(1024, 3), r"\[2, 1024\]"),
        (conditioning(1024, 1, pooled_output=None), conditioning(1024, 3), "source without a pooled output"),
        (conditioning(1024, 1), [], "target without a pooled output"),
        (conditioning(1024, 1), conditioning(1024, 1, pooled_output=torch.zeros(1, 1024)), "target that are 0"),
    ],
)
def test_unfit_conditioning_is_refused_by_name(
    world: World, large: Any, source: list[Any], target: list[Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        world.call("ShiftFromConditioning", guide=large, source=source, target=target)
