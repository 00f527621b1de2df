"""Socket types. The prefix avoids clashes with the incompatible STYLEGAN types of other packs."""

from ._host import io

ROOT = "StyleGAN-NADA"  # the category of every node

GeneratorType = io.Custom("NADA_GENERATOR")  # nada_core.Generator: frozen, on the CPU
GuideType = io.Custom("NADA_GUIDE")  # tuple of (ClipGuide, weight)
ShiftType = io.Custom("NADA_SHIFT")  # TextShift, ImageShift or MixedShift
LayersType = io.Custom("NADA_LAYERS")  # dict of changed LayerChoice fields
OptionsType = io.Custom("NADA_OPTIONS")  # dict of changed AdaptConfig fields
LatentsType = io.Custom("NADA_LATENTS")  # Latents
DomainType = io.Custom("NADA_DOMAIN")  # Domain: weight changes
LikenessType = io.Custom("NADA_LIKENESS")  # (Perceptual | None, Identity | None)
EncoderType = io.Custom("NADA_ENCODER")  # Encoder, including its generator
DirectionsType = io.Custom("NADA_DIRECTIONS")  # Directions
