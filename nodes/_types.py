"""What travels along the wires. The prefix keeps other packs' incompatible STYLEGAN types apart."""

from ._host import io

ROOT = "StyleGAN-NADA"  # the category of every node

GeneratorType = io.Custom("NADA_GENERATOR")  # nada_core.Generator: frozen, on the CPU
GuideType = io.Custom("NADA_GUIDE")  # tuple of (ClipGuide, weight)
ShiftType = io.Custom("NADA_SHIFT")  # TextShift, ImageShift or MixedShift
LayersType = io.Custom("NADA_LAYERS")  # LayerChoice
LatentsType = io.Custom("NADA_LATENTS")  # Latents
DomainType = io.Custom("NADA_DOMAIN")  # Domain: what an adaptation changed
LikenessType = io.Custom("NADA_LIKENESS")  # tuple of Perceptual or None and Identity or None
EncoderType = io.Custom("NADA_ENCODER")  # Encoder, its own generator with it
DirectionsType = io.Custom("NADA_DIRECTIONS")  # Directions
RecipeType = io.Custom("NADA_RECIPE")  # Recipe
