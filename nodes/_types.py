"""Socket types. The prefix avoids clashes with the incompatible STYLEGAN types of other packs."""

from typing import Any

from ._host import io

ROOT = "StyleGAN-NADA"  # the category of every node
MOST = 8  # sockets of an input that grows

GeneratorType = io.Custom("NADA_GENERATOR")  # nada_core.Generator: frozen, on the CPU
GuideType = io.Custom("NADA_GUIDE")  # tuple of (ClipGuide, weight)
ShiftType = io.Custom("NADA_SHIFT")  # a Shift of nada_core
LayersType = io.Custom("NADA_LAYERS")  # dict of changed LayerChoice fields
OptionsType = io.Custom("NADA_OPTIONS")  # dict of changed AdaptConfig fields
LatentsType = io.Custom("NADA_LATENTS")  # Latents
DomainType = io.Custom("NADA_DOMAIN")  # Domain: weight changes
SimilarityType = io.Custom("NADA_SIMILARITY")  # (Perceptual | None, Identity | None)
EncoderType = io.Custom("NADA_ENCODER")  # Encoder, including its generator
DirectionsType = io.Custom("NADA_DIRECTIONS")  # Directions
FramesType = io.Custom("NADA_FACE_FRAMES")  # tuple of FaceFrame
LandmarksType = io.Custom("FACE_LANDMARKS")  # of ComfyUI's MediaPipe node (0.33)
SnapshotsType = io.Custom("NADA_SNAPSHOTS")  # tuple of Snapshot: steps, losses and paths of domain files


def several(name: str, each: str, kind: Any, tooltip: str) -> Any:
    """Return an input that grows from two to eight sockets, `each`_1 to `each`_8. Its value is a dict by socket."""
    template = io.Autogrow.TemplateNames(
        kind.Input(each, tooltip=tooltip), names=[f"{each}_{number}" for number in range(1, MOST + 1)], min=2
    )
    return io.Autogrow.Input(name, template=template, tooltip=tooltip)
