"""Fit the built-in face network: pictures of one person close together, others apart.

The loss is the supervised contrastive one (Khosla et al., arXiv:2004.11362, section 3.2.2, equation 2), since a person
has several pictures in a batch. Half of the people are relatives that share about half of their identity attributes;
otherwise the two or three attributes that fill most of the picture would suffice to tell people apart.

Letters: P people, N pictures, A attributes, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...io.metadata import write_safetensors
from ...models.arcface import SmallFace
from ..render import ATTRIBUTES, HIDDEN, STYLES, render
from .guide import augment
from .training import Average, budget, cosine, optimizer_step, seeded, write_log

#: The attributes that all pictures of a person share. The others belong to one picture: the haircut (hair_length,
#: fringe), the mouth, which a smile bends and widens, glasses, shirt, position and background.
IDENTITY = ("face_width", "face_height", "jaw", "skin", "hair_colour", "hair_volume", "eye_size", "eye_gap")

#: Styles, other than the photo, that show all of these attributes.
IDENTITY_STYLES = tuple(style for style in STYLES[1:] if not HIDDEN.get(style, set()) & set(IDENTITY))

_PEOPLE, _STYLED = 36, 16  # people in a batch, with two photos each, and those of them with a picture in a style

_TEMPERATURE = 0.08


def sample_people(count: int, rng: torch.Generator, relatives: bool = False) -> Tensor:
    """Sample contents [P, A].

    Args:
        relatives: Let the second half of the people share about half of their attributes with the first half.
    """
    people = torch.rand(count, len(ATTRIBUTES), generator=rng)
    if relatives:
        half = count // 2
        shared = torch.rand(half, len(ATTRIBUTES), generator=rng) < 0.5
        people[half : 2 * half] = torch.where(shared, people[:half], people[half : 2 * half])
    return people


def resample_context(people: Tensor, rng: torch.Generator) -> Tensor:
    """Return the same people [P, A] with all attributes that are not in `IDENTITY` sampled anew."""
    fixed = torch.tensor([name in IDENTITY for name in ATTRIBUTES])
    return torch.where(fixed, people, torch.rand(people.shape, generator=rng))


def contrastive_loss(faces: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of unit vectors [N, D] of the people `labels` [N], each of whom has two or more."""
    same = (labels[:, None] == labels).fill_diagonal_(False)
    logits = (faces @ faces.mT / _TEMPERATURE).fill_diagonal_(-1e4)  # no picture is compared with itself
    return -((logits.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


def fit(folder: Path, minutes: float, seed: int = 200, log: Path | None = None) -> None:
    """Fit for a time budget and write `identity.safetensors` into folder. Pictures are rendered in every step."""
    rng = torch.Generator().manual_seed(seed + 1)
    with seeded(seed):
        net = SmallFace()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.01)
    average = Average(dict(net.named_parameters()), 0.99)  # a fit has only some hundred steps
    labels = torch.cat([torch.arange(_PEOPLE), torch.arange(_PEOPLE), torch.arange(_STYLED)])
    for step, progress in budget(minutes):
        people = sample_people(_PEOPLE, rng, relatives=True)[torch.randperm(_PEOPLE, generator=rng)]
        style = IDENTITY_STYLES[int(torch.randint(len(IDENTITY_STYLES), (), generator=rng))]
        photos = render(torch.cat([resample_context(people, rng), resample_context(people, rng)]))
        styled = render(resample_context(people[:_STYLED], rng), style)
        pictures = augment(torch.cat([photos, styled]), rng)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = net(pictures.contiguous(memory_format=torch.channels_last))
        faces = F.normalize(embeddings.float(), dim=-1)
        loss = contrastive_loss(faces, labels)
        optimizer_step(optimizer, loss, cosine(2e-3, step, progress, 100), clip=net.parameters())
        average.update(dict(net.named_parameters()), step)
        nearest = (faces.detach() @ faces.detach().mT).fill_diagonal_(-1).argmax(1)
        write_log(log, step, 50, progress, loss=loss, accuracy=(labels[nearest] == labels).float().mean())
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"kind": "nada_identity", "tells": ",".join(IDENTITY)}
    write_safetensors(folder / "identity.safetensors", average.half(), metadata)
