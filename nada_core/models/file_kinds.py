"""Guess what a file of weights holds, so that a loader that cannot read it says what to do instead."""

from ..io.checkpoint_file import RawCheckpoint

#: `kind` in the metadata of this package's own files.
_KINDS = {
    "nada_domain": "a domain; apply it to the generator it was made from",
    "nada_run": "the autosave of a run; resume the run from it",
    "nada_latents": "latents; load them as latents",
    "nada_directions": "directions; load them as directions",
    "nada_identity": "a face recogniser; load it as an identity network",
}

#: Parts of tensor names; the first match counts.
_NAMES = (
    ("synthesis.L0_", "a StyleGAN3 generator, which is not supported yet"),
    ("g_mapping.", "a StyleGAN1 generator, which is not supported"),
    ("progression.", "a StyleGAN1 generator of rosinality, which is not supported"),
    ("/StyleMod/", "a StyleGAN1 generator of TensorFlow, which is not supported"),
    ("4x4/Dense/", "a Progressive GAN of TensorFlow, which is not supported"),
    ("/FromRGB", "a discriminator of TensorFlow; a generator is needed"),
    ("to_style1.", "a generator of lucidrains/stylegan2-pytorch, which has another architecture"),
    ("modulated_conv.", "a StyleGAN2 of BasicSR or GFPGAN, which is not supported"),
    ("encoder_q.", "MoCo, which is not trained on faces"),
    ("encoder.body.", "an encoder (pSp, e4e, ReStyle); load it as an encoder"),
    ("state_dict.encoder.", "an encoder (pSp, e4e, ReStyle); load it as an encoder"),
    ("layer_scale1.lambda1", "DINOv2, which is not CLIP and has no text space"),
    ("vision_model.embeddings.patch_embedding.bias", "SigLIP of transformers; use open_clip's file of the same model"),
    ("vision_model.", "a CLIP model; load it as a guide"),
    ("text_model.", "the text tower of a CLIP model alone, without its image tower; use the whole model"),
    ("visual.", "a CLIP model; load it as a guide"),
    ("conv1.conv.modulation.", "a generator; load it as a generator"),
    ("synthesis.", "a generator; load it as a generator"),
    ("final_conv.", "a discriminator; a generator is needed"),
    ("b4.mbstd", "a discriminator; a generator is needed"),
    ("b4.conv.", "a discriminator; a generator is needed"),
    ("output_layer.3.", "a face recogniser; load it as an identity network"),
    ("layer4.", "a ResNet for general images"),
    ("body.", "a trunk without its output_layer, used to initialize encoders"),
)


def describe(raw: RawCheckpoint, reader: str) -> str:
    """Return what the file seems to be and how to load it. reader: what it was read as, which is not suggested."""
    kinds = [_KINDS.get(raw.kind, "")]
    if raw.container == "safetensors" and "spec" in raw.hints:
        kinds.append("a generator saved by this package; load it as a generator")
    kinds += [kind for part, kind in _NAMES if any(part in name for name in raw.tensors)]
    fallback = f"none of the usual files; its {len(raw.tensors)} tensors begin with {sorted(raw.tensors)[:3]}"
    return next((kind for kind in kinds if kind and not kind.endswith(reader)), fallback)
