"""Socket types. The prefix avoids clashes with the incompatible STYLEGAN types of other packs."""

from ._host import io

ROOT = "StyleGAN-NADA"  # the category of every node

GeneratorType = io.Custom("NADA_GENERATOR")  # nada_core.Generator: frozen, on the CPU
GuideType = io.Custom("NADA_GUIDE")  # tuple of (ClipGuide, weight)
ShiftType = io.Custom("NADA_SHIFT")  # TextShift, ImageShift or MixedShift
LayersType = io.Custom("NADA_LAYERS")  # LayerChoice
LatentsType = io.Custom("NADA_LATENTS")  # Latents
DomainType = io.Custom("NADA_DOMAIN")  # Domain: weight changes
LikenessType = io.Custom("NADA_LIKENESS")  # (Perceptual | None, Identity | None)
EncoderType = io.Custom("NADA_ENCODER")  # Encoder, including its generator
DirectionsType = io.Custom("NADA_DIRECTIONS")  # Directions
RecipeType = io.Custom("NADA_RECIPE")  # Recipe
