"""Files into the graph: generators, the CLIP models that guide them, and the networks that look at photos."""

from __future__ import annotations

from typing import Any

from ..nada_core import load_generator, load_guide, load_identity, load_perceptual
from ..nada_core.models.arcface import BUILTINS as RECOGNISERS
from ..nada_core.models.checkpoints import BUILTINS
from ..nada_core.models.clip import built_in_guides
from ..nada_core.models.lpips import TRUNKS
from ._host import GENERATORS, GUIDES, IDENTITIES, file_stamp, files, find, io, missing, normal_mode
from ._types import ROOT, GeneratorType, GuideType, LikenessType

#: The published weights offered; the first two are the paper's (section 4.1). open_clip downloads them on first use.
PUBLISHED = (
    "ViT-B-32:openai",
    "ViT-B-16:openai",
    "ViT-L-14:openai",
    "RN50:openai",
    "ViT-B-32:laion2b_s34b_b79k",
    "ViT-B-16:laion2b_s34b_b88k",
    "ViT-L-14:datacomp_xl_s13b_b90k",
)
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
)


class LoadGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadGenerator",
            display_name="Load Generator",
            category=f"{ROOT}/load",
            description="Reads a StyleGAN2 generator: NVIDIA's .pkl, rosinality's .pt, or a .safetensors of this pack. "
            'Nothing stored in a file is ever executed. "portraits" is built in.',
            search_aliases=["load stylegan", "stylegan2", "checkpoint", "gan", "pkl", "ffhq", "nada"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*BUILTINS, *files(GENERATORS)],
                    default=next(iter(BUILTINS)),
                    tooltip="A built-in generator, or a file in models/stylegan_nada, models/stylegan, "
                    "models/stylegan2 or output/stylegan_nada. Press R to see new files.",
                )
            ],
            outputs=[
                GeneratorType.Output(
                    "generator",
                    display_name="generator",
                    tooltip="The generator, as the file has it. No node changes it; nodes that adapt give a new one.",
                ),
                io.String.Output(
                    "layers",
                    display_name="layers",
                    tooltip="The names of its layers, one a line, as Choose Layers takes them.",
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
        return io.NodeOutput(generator, "\n".join(layer.name for layer in generator.layers()))


class LoadGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        built_in = list(built_in_guides())
        return io.Schema(
            node_id="StyleGANNADA_LoadGuide",
            display_name="Load CLIP Guide",
            category=f"{ROOT}/load",
            description='Reads the CLIP model that says which way a text leads. "portraits" is built in and knows '
            "the built-in generator's pictures only; a published generator wants a published CLIP.",
            search_aliases=["clip", "open_clip", "load clip", "guide", "vit-b-32", "nada"],
            inputs=[
                io.Combo.Input(
                    "guide",
                    options=[*built_in, *PUBLISHED, *files(GUIDES)],
                    default=built_in[0],
                    tooltip="A built-in guide; published weights as ARCHITECTURE:TAG, downloaded by open_clip when "
                    "first used; or a file in models/stylegan_nada/guides.",
                ),
                io.Combo.Input(
                    "architecture",
                    options=list(ARCHITECTURES),
                    default=ARCHITECTURES[0],
                    tooltip="Only for a file of your own: what it was trained as. OpenAI's weights need a -quickgelu "
                    "one. An open_clip config beside the file, of the same name in .json, comes first.",
                ),
                io.Boolean.Input(
                    "antialias",
                    default=True,
                    advanced=True,
                    tooltip="Shrink pictures smoothly before CLIP sees them. The first implementation did not, which "
                    "lets the training hide in fine patterns.",
                ),
            ],
            outputs=[GuideType.Output("guide", display_name="guide", tooltip="The frozen CLIP, with weight 1.")],
        )

    @classmethod
    def validate_inputs(cls, guide: str | None) -> bool | str:
        return missing(GUIDES, guide, (*built_in_guides(), *PUBLISHED)) or True

    @classmethod
    def fingerprint_inputs(cls, guide: str, **_: Any) -> Any:
        return file_stamp(GUIDES, guide)

    @classmethod
    @normal_mode()
    def execute(cls, guide: str, architecture: str, antialias: bool = True) -> Any:
        if guide in built_in_guides() or guide in PUBLISHED:
            loaded = load_guide(guide, antialias=antialias)
        else:
            path = find(GUIDES, guide)
            config = path.with_suffix(".json")
            loaded = load_guide(path, config if config.is_file() else architecture, antialias=antialias)
        loaded.fingerprint  # noqa: B018  kept from here on, or every training would read all weights again
        return io.NodeOutput(((loaded, 1.0),))


class CombineGuides(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        def weight(name: str, which: str) -> Any:
            return io.Float.Input(
                name,
                default=1.0,
                min=0.01,
                max=100.0,
                step=0.05,
                round=0.001,
                tooltip=f"How much the {which} counts. Only the ratio matters.",
            )

        return io.Schema(
            node_id="StyleGANNADA_CombineGuides",
            display_name="Combine Guides",
            category=f"{ROOT}/load",
            description="Lets two guides judge together, which are harder to fool than one (the paper adds ViT-B/32 "
            "and ViT-B/16). Chain the node for more.",
            search_aliases=["ensemble", "clip ensemble", "merge clip", "several guides"],
            inputs=[
                GuideType.Input("first", tooltip="One guide, or several already combined."),
                GuideType.Input("second", tooltip="Another guide."),
                weight("first_weight", "first"),
                weight("second_weight", "second"),
            ],
            outputs=[GuideType.Output("guide", display_name="guide", tooltip="All of them, with their weights.")],
        )

    @classmethod
    def execute(cls, first: tuple, second: tuple, first_weight: float, second_weight: float) -> Any:
        weighed = ((first, first_weight), (second, second_weight))
        return io.NodeOutput(tuple((guide, own * weight) for guides, weight in weighed for guide, own in guides))


class LoadLikeness(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        trunks = [f"{trunk}{place}" for trunk in TRUNKS for place in ("", ":imagenet", ":random")]
        return io.Schema(
            node_id="StyleGANNADA_LoadLikeness",
            display_name="Load Likeness",
            category=f"{ROOT}/load",
            description="Reads the networks that tell how alike two pictures are: LPIPS, to the eye, and a face "
            "recogniser, whether it is the same person.",
            search_aliases=["lpips", "arcface", "identity loss", "perceptual loss", "ir-se50"],
            inputs=[
                io.Combo.Input(
                    "perceptual",
                    options=["none", *trunks],
                    default="none",
                    tooltip="The network of LPIPS. A bare name reads torchvision's weights from torch's cache; "
                    ":imagenet downloads them if they are not there; :random is untrained, and its numbers "
                    "are relative only.",
                ),
                io.Combo.Input(
                    "identity",
                    options=["none", *RECOGNISERS, *files(IDENTITIES)],
                    default="none",
                    tooltip="The face recogniser: the built-in one knows the built-in faces only; for real ones put "
                    "model_ir_se50.pth into models/stylegan_nada/identity and press R.",
                ),
            ],
            outputs=[
                LikenessType.Output(
                    "likeness",
                    display_name="likeness",
                    tooltip="Both, for Invert Photo, Pivotal Tuning, Edit by Text and Adapt Generator.",
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
        eyes = None if perceptual == "none" else load_perceptual(perceptual)
        return io.NodeOutput((eyes, None if identity == "none" else load_identity(place)))
