"""Loader nodes: generators, CLIP guides, and the networks for perceptual and identity losses."""

from __future__ import annotations

import math
from typing import Any

from ..nada_core import load_generator, load_guide, load_identity, load_perceptual
from ..nada_core.models.arcface import BUILTINS as RECOGNISERS
from ..nada_core.models.checkpoints import BUILTINS
from ..nada_core.models.clip_loading import built_in_guides
from ..nada_core.models.lpips import TRUNKS
from ..nada_core.models.summary import describe_generator
from ._host import GENERATORS, GUIDES, IDENTITIES, file_stamp, files, find, io, missing, normal_mode
from ._server import send_text
from ._types import ROOT, GeneratorType, GuideType, SimilarityType, several
from ._widgets import numbers

#: Published CLIP weights, downloaded by open_clip on first use. The paper uses the first two (section 4.1).
PUBLISHED = (
    "ViT-B-32:openai",
    "ViT-B-16:openai",
    "ViT-L-14:openai",
    "RN50:openai",
    "ViT-B-32:laion2b_s34b_b79k",
    "ViT-B-16:laion2b_s34b_b88k",
    "ViT-L-14:datacomp_xl_s13b_b90k",
)
OWN_FILE, OTHER_MODEL = "own file", "another open_clip model"
_NONE = "(no CLIP model found)"
ARCHITECTURES = (
    "ViT-B-32-quickgelu",
    "ViT-B-16-quickgelu",
    "ViT-L-14-quickgelu",
    "RN50-quickgelu",
    "RN101-quickgelu",
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-H-14",
    "ViT-bigG-14",
    "ViT-B-16-SigLIP",
)


class LoadGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadGenerator",
            display_name="StyleGAN Loader",
            category=f"{ROOT}/load",
            description="Loads a StyleGAN2 generator: NVIDIA .pkl (PyTorch or TensorFlow), rosinality .pt, or "
            '.safetensors saved by this pack. Code stored in a file is never executed. "portraits" is built in.',
            search_aliases=["stylegan", "stylegan2", "load stylegan", "checkpoint", "gan", "pkl", "ffhq"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*BUILTINS, *files(GENERATORS)],
                    default=next(iter(BUILTINS)),
                    tooltip="A built-in generator, or a file in models/stylegan_nada, models/stylegan, "
                    "models/stylegan2 or output/stylegan_nada. Press R to refresh the list.",
                )
            ],
            outputs=[
                GeneratorType.Output(
                    "generator",
                    display_name="generator",
                    tooltip="The generator. No node modifies it; nodes that train return a new one.",
                ),
                io.String.Output(
                    "layers",
                    display_name="layers",
                    tooltip="The layer names, one per line, as Choose Layers expects them.",
                ),
                io.String.Output(
                    "info",
                    display_name="info",
                    tooltip="Resolution, file format, sizes, recommended settings and license, if the file states it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return missing(GENERATORS, file, BUILTINS) or True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> Any:
        return file_stamp(GENERATORS, file)

    @classmethod
    @normal_mode()
    def execute(cls, file: str) -> Any:
        generator = load_generator(file if file in BUILTINS else find(GENERATORS, file))
        info = describe_generator(generator)
        send_text(info)
        return io.NodeOutput(generator, "\n".join(layer.name for layer in generator.layers()), info)


class LoadGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        built_in = list(built_in_guides())
        return io.Schema(
            node_id="StyleGANNADA_LoadGuide",
            display_name="Load CLIP Guide",
            category=f"{ROOT}/load",
            description='Loads the CLIP model that compares images with text. "portraits" is built in and '
            "works only with the built-in generator; use a published CLIP with a published generator.",
            search_aliases=["clip guide", "open_clip", "clip for training", "vit-b-32", "openai clip"],
            inputs=[
                io.DynamicCombo.Input(
                    "guide",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in (*built_in, *PUBLISHED)),
                        io.DynamicCombo.Option(OWN_FILE, _own_file_inputs()),
                        io.DynamicCombo.Option(OTHER_MODEL, _other_model_inputs()),
                    ],
                    tooltip="A built-in guide; published weights as ARCHITECTURE:TAG, which open_clip downloads "
                    "on first use; own file: a file in models/stylegan_nada/guides; another open_clip model: others.",
                )
            ],
            outputs=[GuideType.Output("guide", display_name="guide", tooltip="The frozen CLIP model, with weight 1.")],
        )

    @classmethod
    def fingerprint_inputs(cls, guide: dict[str, Any] | None = None, **_: Any) -> Any:
        return file_stamp(GUIDES, guide["file"]) if guide and "file" in guide else guide

    @classmethod
    @normal_mode()
    def execute(cls, guide: dict[str, Any] | None = None) -> Any:
        if guide is None:  # ComfyUI drops a value that is no option
            raise ValueError("The guide of this workflow is not known here; choose another one.")
        if guide["guide"] == OWN_FILE:
            path = find(GUIDES, guide["file"])
            config = path.with_suffix(".json")
            loaded = load_guide(path, config if config.is_file() else guide["architecture"])
        else:
            loaded = load_guide(guide["model"].strip() if guide["guide"] == OTHER_MODEL else guide["guide"])
        loaded.fingerprint  # noqa: B018  computed once here and cached, because it hashes all weights
        return io.NodeOutput(((loaded, 1.0),))


def _own_file_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "file",
            options=files(GUIDES) or [_NONE],
            tooltip="A file in models/stylegan_nada/guides. Press R to refresh the list.",
        ),
        io.Combo.Input(
            "architecture",
            options=list(ARCHITECTURES),
            default=ARCHITECTURES[0],
            tooltip="Architecture of the file. OpenAI weights need a -quickgelu architecture. An open_clip config "
            "(.json) with the same file name takes precedence.",
        ),
    ]


def _other_model_inputs() -> list[Any]:
    return [
        io.String.Input(
            "model",
            default="ViT-B-16-SigLIP:webli",
            tooltip="ARCHITECTURE:TAG of any model that open_clip lists, or hf-hub:OWNER/NAME of an open_clip model on "
            "the Hugging Face hub, such as hf-hub:chs20/fare2-clip. It is downloaded on first use. Its license is "
            "on its model card.",
        )
    ]


class CombineGuides(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_CombineGuides",
            display_name="Combine CLIP Guides",
            category=f"{ROOT}/load",
            description="Combines two to eight CLIP guides into an ensemble. Their losses are averaged, which reduces "
            "adversarial artifacts; the paper uses ViT-B/32 and ViT-B/16.",
            search_aliases=["ensemble", "clip ensemble", "merge clip", "several guides"],
            inputs=[
                several("guides", "guide", GuideType, "One guide, or several already combined."),
                io.String.Input(
                    "guide_weights",
                    default="",
                    placeholder="1 3",
                    tooltip="One weight for each guide, separated by spaces or commas. Only their ratio matters. "
                    "Empty: equal weights.",
                ),
            ],
            outputs=[GuideType.Output("guide", display_name="guide", tooltip="All guides with their weights.")],
        )

    @classmethod
    def execute(cls, guides: dict[str, tuple], guide_weights: str = "") -> Any:
        factors = numbers("guide_weights", guide_weights) or [1.0] * len(guides)
        if len(factors) != len(guides) or not all(0 < factor < math.inf for factor in factors):
            raise ValueError(
                f"Got guide_weights {guide_weights!r} for {len(guides)} guides; expected one number above 0 for each."
            )
        weighed = zip(guides.values(), factors, strict=True)
        return io.NodeOutput(tuple((guide, own * factor) for group, factor in weighed for guide, own in group))


class LoadLikeness(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        trunks = [f"{trunk}{place}" for trunk in TRUNKS for place in ("", ":imagenet", ":random")]
        return io.Schema(
            node_id="StyleGANNADA_LoadLikeness",
            display_name="Load LPIPS and Identity",
            category=f"{ROOT}/load",
            description="Loads the networks for image similarity: LPIPS for perceptual similarity, and a face "
            "recognition network for identity.",
            search_aliases=[
                "lpips",
                "arcface",
                "likeness",
                "face recognition",
                "identity loss",
                "perceptual loss",
                "ir-se50",
            ],
            inputs=[
                io.Combo.Input(
                    "perceptual",
                    options=["none", *trunks],
                    default="none",
                    tooltip="The LPIPS network. A plain name reads torchvision weights from the torch cache; "
                    ":imagenet downloads them if they are missing; :random uses untrained weights, so its "
                    "values are not comparable with published ones. torchvision is BSD-3-Clause.",
                ),
                io.Combo.Input(
                    "identity",
                    options=["none", *RECOGNISERS, *files(IDENTITIES)],
                    default="none",
                    tooltip="The face recognition network. The built-in one works only on built-in faces; for "
                    "real photos, put model_ir_se50.pth into models/stylegan_nada/identity and press R. "
                    "InsightFace allows models trained on its data for non-commercial research only.",
                ),
            ],
            outputs=[
                SimilarityType.Output(
                    "similarity_networks",
                    display_name="similarity_networks",
                    tooltip="Both networks, for Invert Photo, Pivotal Tuning, Edit StyleGAN by Text and Adapt "
                    "Generator.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, identity: str | None) -> bool | str:
        return missing(IDENTITIES, identity, ("none", *RECOGNISERS)) or True

    @classmethod
    def fingerprint_inputs(cls, identity: str, **_: Any) -> Any:
        return file_stamp(IDENTITIES, identity)

    @classmethod
    @normal_mode()
    def execute(cls, perceptual: str, identity: str) -> Any:
        place = identity if identity in RECOGNISERS or identity == "none" else find(IDENTITIES, identity)
        lpips = None if perceptual == "none" else load_perceptual(perceptual)
        return io.NodeOutput((lpips, None if identity == "none" else load_identity(place)))
