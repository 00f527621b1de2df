"""A small CLIP Vision for ComfyUI's own loader, and what ComfyUI computes with it in a process of its own.

ComfyUI takes the sizes of a CLIP Vision from its table of published models, the smallest of which is ViT-L/14 with 300
million weights. `write` makes a file with the tensor names and the number of layers of that model, and a custom node
that changes the other sizes in the table. Loader, networks and all else are ComfyUI's own.

This file is also the program of that process, see `inprocess`. It knows ComfyUI's modules and nothing of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 12,
}
LAYERS = 24  # ComfyUI recognizes ViT-L/14 by them

NODE = '''"""Gives ComfyUI's CLIP Vision models the sizes in sizes.json."""
import json
from pathlib import Path

import comfy.clip_vision

original = comfy.clip_vision.ClipVisionModel.__init__


def small(self, json_config):
    place = Path(__file__).with_name("config.json")
    sizes = json.loads(Path(__file__).with_name("sizes.json").read_text())
    place.write_text(json.dumps(json.loads(Path(json_config).read_text()) | sizes))
    original(self, str(place))


comfy.clip_vision.ClipVisionModel.__init__ = small
NODE_CLASS_MAPPINGS = {}
'''


def write(base: Path) -> str:
    """Write the file and the custom node below a base directory of ComfyUI; return the name of the file."""
    from safetensors.torch import save_file

    node, models = base / "custom_nodes" / "small_clip_vision", base / "models" / "clip_vision"
    for folder in (node, models):
        folder.mkdir(parents=True, exist_ok=True)
    (node / "__init__.py").write_text(NODE)
    (node / "sizes.json").write_text(json.dumps(SIZES))
    save_file(_weights(), models / "small.safetensors")
    return "small.safetensors"


def run_inside(comfy: Path, python: str, pack: Path, base: Path) -> dict[str, Any]:
    """Return what the process tells: see `_inside`. Raises RuntimeError when it fails."""
    from environment import process_environment

    write(base)
    done = subprocess.run(
        [python, "-c", Path(__file__).read_text(encoding="utf-8")],
        input=json.dumps({"base": str(base)}),
        cwd=comfy,
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
        env={**process_environment(), "PYTHONPATH": os.pathsep.join([str(pack), str(base / "custom_nodes")])},
    )
    if done.returncode:
        raise RuntimeError(f"the process inside ComfyUI failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _weights() -> dict[str, Any]:
    import torch

    rng = torch.Generator().manual_seed(0)
    width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    patches = (SIZES["image_size"] // SIZES["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, SIZES["patch_size"], SIZES["patch_size"]),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, width),
        "visual_projection.weight": (SIZES["projection_dim"], width),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    for index in range(LAYERS):
        place = f"vision_model.encoder.layers.{index}."
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{place}{name}.{kind}": (width,) for kind in ("weight", "bias")}
        linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        for name, shape in {**linear, "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}.items():
            shapes |= {f"{place}{name}.weight": shape, f"{place}{name}.bias": shape[:1]}
    return {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()}


# ---- what runs inside -----------------------------------------------------------------------------------------------


def _inside(order: dict[str, str]) -> dict[str, Any]:
    import comfy.options  # noqa: F401 - leaves the command line alone
    from comfy.cli_args import args

    args.cpu = True
    import comfy.clip_vision
    import comfy.model_management
    import small_clip_vision  # noqa: F401 - changes the sizes
    import torch

    from nada_core import guide_from_vision_tower

    path = str(Path(order["base"], "models", "clip_vision", "small.safetensors"))
    with torch.inference_mode():  # as ComfyUI runs nodes
        loaded = comfy.clip_vision.load(path)
        image = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(1)) / 255
        theirs = torch.nn.functional.normalize(loaded.encode_image(image)["image_embeds"].float(), dim=-1)
    before = {name: value.clone() for name, value in loaded.get_sd().items()}
    memory = [repr(one.model) for one in comfy.model_management.current_loaded_models]
    guide = guide_from_vision_tower(loaded.get_sd(), loaded.config)
    x = (image.clone().movedim(-1, 1) * 2 - 1).requires_grad_()
    ours = guide.encode_images(x)
    ours.square().sum().sub(ours[:, 0].sum()).backward()
    after = loaded.get_sd()
    return {
        "difference": (ours - theirs).abs().max().item(),
        "gradient": x.grad.abs().max().item(),
        "changed": [name for name in before if not torch.equal(before[name], after[name])],
        "memory_changed": memory != [repr(one.model) for one in comfy.model_management.current_loaded_models],
        **_core_gradients(torch, comfy.clip_model, comfy.clip_vision.load(path)),
        "projected": _projected(),
        "text_difference": _text_difference(torch),
    }


def _core_gradients(torch: Any, clip_model: Any, loaded: Any) -> dict[str, Any]:
    """The gradient through ComfyUI's preprocessing, and the error of its network."""
    image = torch.rand(1, 48, 48, 3, requires_grad=True)
    clip_model.clip_preprocess(image, size=32).square().sum().backward()
    loaded.model.requires_grad_(False)
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    error_text = ""
    try:
        loaded.model(pixel_values=pixels, intermediate_output=-2)[2].sum().backward()
    except RuntimeError as error:
        error_text = str(error)
    return {"preprocessing_gradient": image.grad.abs().max().item(), "network_error": error_text}


def _text_difference(torch: Any) -> float:
    """How far the pooled output of a small clip_g is from the text embedding of open_clip with the same weights."""
    import open_clip
    from comfy.sdxl_clip import SDXLClipG, SDXLClipGTokenizer

    from nada_core.models.clip_transformers import to_open_clip

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    encoder = SDXLClipG(dtype=torch.float32, model_options={"clip_g_model_config": sizes})
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=rng) * 0.3 for name, value in encoder.transformer.state_dict().items()
    }
    encoder.transformer.load_state_dict(weights)
    text = {"width": 64, "heads": 2, "layers": 3, "mlp_ratio": 2.0}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
    ours = open_clip.CLIP(64, vision, text).eval()
    ours.load_state_dict(to_open_clip(weights), strict=False)
    words = "a pencil drawing of a face"
    with torch.no_grad():
        pooled = encoder.encode_token_weights(SDXLClipGTokenizer().tokenize_with_weights(words))[1]
        return (ours.encode_text(open_clip.tokenize([words])) - pooled).abs().max().item()


def _projected() -> dict[str, bool]:
    """Whether the pooled output of each text encoder is projected into the space of CLIP."""
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd2_clip
    import comfy.text_encoders.sd3_clip
    from comfy.sdxl_clip import SDXLClipG

    texts = comfy.text_encoders
    return {
        "sdxl": SDXLClipG(device="meta").return_projected_pooled,
        "sd2": texts.sd2_clip.SD2ClipHModel(device="meta").return_projected_pooled,
        "flux": texts.flux.FluxClipModel(device="meta").clip_l.return_projected_pooled,
        "sd3": texts.sd3_clip.SD3ClipModel(device="meta").clip_l.return_projected_pooled,
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_inside(json.load(sys.stdin))) + "\n")
