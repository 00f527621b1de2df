"""Describe a generator in a few lines, for `nada_core info` and for StyleGAN Loader."""

from .generator import Generator

SECTIONS = ("adapt", "invert", "tune")  # of the recommended settings


def describe_generator(generator: Generator) -> str:
    """Return sizes, file format, recommended settings and license of a generator, one line each."""
    side = generator.resolution
    recommended = [section for section in SECTIONS if section in generator.recommended]
    parameters = sum(weight.numel() for weight in generator.parameters())
    lines = (
        f"{generator.family} generator, {side} x {side} pixels",
        f"file format: {generator.layout or 'none, it was not loaded from a file'}",
        f"z {generator.z_dim}, w {generator.w_dim}, {generator.num_ws} rows of W+, {generator.c_dim or 'no'} classes",
        f"{len(generator.layers())} layers, {parameters:,} parameters",
        f"recommended settings: {', '.join(recommended) or 'none in the file'}",
        f"license: {generator.license or 'not stated in the file'}",
    )
    return "\n".join(lines)
