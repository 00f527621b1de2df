"""Error messages of the core, which names settings classes and Python functions, in the words of the nodes."""

from __future__ import annotations

import re

#: Pattern -> replacement, applied in this order.
_WORDS = (
    (r"\b(?:AdaptConfig|LayerChoice|InvertConfig|TuneConfig|TextEditConfig)\.", ""),
    (
        r"batch is 1, but the terms ([\w, ]+) compare the images of a batch; take a batch of at least 2, .*",
        r"batch is 1, but the losses \1 compare the images of a batch; set batch to 2 or more, or these losses to 0.",
    ),
    (
        r"\bterms are all 0; give at least one a weight, such as direction 1",
        "all losses have weight 0; give at least one a weight, such as direction_loss 1",
    ),
    (
        r"; pass (?:perceptual|identity)=load_\w+\(\.\.\.\), or",
        "; choose it in Load LPIPS and Identity and connect it, or",
    ),
    (r"; pass identity\.", "; choose it in Load LPIPS and Identity and connect it, or set id to 0."),
    (
        r"pass start=sample\(generator, seeds, psi=0, label=\.\.\.\), one latent per image",
        "connect Sample StyleGAN Latents with psi 0 and a label to start, one latent per image",
    ),
    (r"without a judge; pass a CLIP model that is no guide", "without a judge; connect a CLIP guide to judge"),
    (
        r"use a shift to images, or one of embeddings from elsewhere, or a guide with a text tower",
        "use Shift from Images, Shift from Conditioning, or a guide of Load CLIP Guide",
    ),
    (r"train again to get it", "set another snapshot_every in Adapt Generator and run again"),
    (r"set snapshot_every of the training, such as to 25", "set snapshot_every of Adapt Generator, such as to 25"),
    (r"Read them with load_image, or scale them first", "Scale them first"),
    (r"load it with load_generator", "choose it in StyleGAN Loader"),
    (r"load it with load_guide", "choose it in Load CLIP Guide"),
    (r"load it with load_identity", "choose it in Load LPIPS and Identity"),
    (r"load it with load_encoder", "choose it in Load StyleGAN Encoder"),
    (r"load them with load_latents", "choose them in Load StyleGAN Latents"),
    (r"load them with load_directions", "choose them in Load StyleGAN Directions"),
    (r"load the generator it was made from and apply it to that one", "choose it in Load StyleGAN Domain"),
    (
        r"not written by save_(latents|directions); for a file of another program pass its generator",
        r"not written by Save \1; a file of another program also needs its generator",
    ),
)


def in_node_words(message: str) -> str:
    """Return the message with the names of nodes and inputs instead of those of classes, fields and functions."""
    for pattern, replacement in _WORDS:
        message = re.sub(pattern, replacement, message)
    return message
