"""Face nodes: cut faces out of photos and video frames, and paste them back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import FacePoints, PasteConfig, align_faces, paste_faces
from ..nada_core.latents.face_alignment import CUTS
from ..nada_core.latents.face_paste import REGIONS
from ..nada_core.latents.face_points import faces_from_meshes
from ._host import from_image, io, normal_mode, pasted_image, to_image, to_mask
from ._server import watch
from ._types import ROOT, FramesType, LandmarksType

_POINTS = (
    "Five landmarks in pixels: left eye, right eye, nose, left and right mouth corner, as seen in the image; the nose "
    "is optional. Separate several faces by a slash. Empty: detect them, which requires the package mtcnn-runtime."
)
_CUT = (
    "What to crop. the face: fail if no face is found. the face, else the middle: crop the center square if no face is "
    "found. the middle: always crop the center square."
)


class AlignFace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AlignFace",
            display_name="Align Face to FFHQ",
            category=f"{ROOT}/photos",
            description="Crops and rotates a face the same way as the FFHQ dataset. Generators and encoders "
            "trained on FFHQ expect this alignment.",
            search_aliases=["ffhq align", "crop face", "face crop", "landmarks"],
            inputs=[
                io.Image.Input("image", tooltip="One photo, or several as a batch, such as the frames of a video."),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=16,
                    max=2048,
                    step=1,
                    tooltip="Output width and height in pixels. Use the resolution of the generator.",
                ),
                io.Int.Input(
                    "face",
                    default=0,
                    min=-1,
                    max=100,
                    step=1,
                    tooltip="Face index, by size: 0 is the largest. -1: all faces of the photo.",
                ),
                io.String.Input(
                    "points", default="", placeholder="120,150 180,150 150,185 125,220 175,220", tooltip=_POINTS
                ),
                io.Combo.Input("cut", options=list(CUTS), default=CUTS[0], tooltip=_CUT),
                LandmarksType.Input(
                    "landmarks",
                    optional=True,
                    tooltip="Landmarks from ComfyUI's MediaPipe node, instead of points and mtcnn-runtime.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.5,
                    round=0.01,
                    tooltip="For the frames of a video: follow the faces of the first frame, and smooth their "
                    "landmarks over time by a Gaussian with this standard deviation, in frames. 0: independent photos.",
                ),
            ],
            outputs=[
                io.Image.Output("aligned", display_name="aligned", tooltip="The aligned faces."),
                FramesType.Output(
                    "frames",
                    display_name="frames",
                    tooltip="Where each face lies in its photo, for Paste Face into Photo.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls, image: Tensor, size: int, face: int, points: str, cut: str, landmarks: Any = None, smoothing: float = 0.0
    ) -> Any:
        marked, index = _marked(image, points, landmarks), None if face == -1 else face
        if points.strip() and index and len(marked[0]) == 1:
            index = 0  # the only face, given by hand
        aligned, frames = align_faces(from_image(image), size, marked, index, cut, smoothing, watch(len(image)))
        return io.NodeOutput(to_image(aligned), tuple(frames))


class PasteFace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PasteFace",
            display_name="Paste Face into Photo",
            category=f"{ROOT}/photos",
            description="Pastes edited faces back into their photos with a soft edge. Pixels outside of the mask "
            "do not change.",
            search_aliases=["paste back", "uncrop", "composite face", "face swap", "inverse warp"],
            inputs=[
                io.Image.Input("image", tooltip="The photos that were aligned, of any size, with or without alpha."),
                io.Image.Input(
                    "faces",
                    tooltip="The edited faces, of any size: one per frame, or several versions of one face, which "
                    "give as many photos. Their alpha, if any, limits the pasted area.",
                ),
                FramesType.Input("frames", tooltip="From Align Face to FFHQ: where the faces were cut out."),
                io.Combo.Input(
                    "region",
                    options=list(REGIONS),
                    default=PasteConfig().region,
                    tooltip="What to paste. oval: the head, without the corners of the crop. square: the whole crop.",
                ),
                _share("feather", "Width of the soft edge, as a share of the crop. 0: a hard edge.", 0.5, 0.01),
                _share(
                    "detail",
                    "How much of the photo's own detail to keep where it is finer than the crop. 1: paste only what "
                    "the edit changed. 0: replace the area by the crop, for edits that move edges.",
                ),
                _share("color_match", "How far to match the colors of the crop to those of the photo. 0: not at all."),
            ],
            outputs=[
                io.Image.Output("pasted", display_name="pasted", tooltip="The photos with the edited faces."),
                io.Mask.Output("mask", display_name="mask", tooltip="The area that was pasted."),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, image: Tensor, faces: Tensor, frames: tuple, **values: Any) -> Any:
        photos, crops = from_image(image, 4), from_image(faces, 4)
        pasted, mask = paste_faces(photos, crops, frames, PasteConfig(**values), watch(len(crops)))
        return io.NodeOutput(pasted_image(pasted, mask, image), to_mask(mask))


def _share(name: str, tooltip: str, high: float = 1.0, step: float = 0.05) -> Any:
    default = getattr(PasteConfig(), name)
    return io.Float.Input(name, default=default, min=0.0, max=high, step=step, round=0.001, tooltip=tooltip)


def _marked(image: Tensor, points: str, landmarks: Any) -> Any:
    """The faces of every photo that were given by text or by MediaPipe; None if they are to be found."""
    if points.strip():
        return [FacePoints.parse_all(points)] * len(image)
    if landmarks is None:
        return None
    if (size := tuple(landmarks["image_size"])) != tuple(image.shape[1:3]):
        got, expected = f"{size[1]} x {size[0]}", f"{image.shape[2]} x {image.shape[1]} pixels"
        raise ValueError(f"Got landmarks of an image of {got} pixels, expected {expected}: detect them in this image.")
    return [faces_from_meshes([one["landmarks_xy"] for one in faces]) for faces in landmarks["frames"]]
