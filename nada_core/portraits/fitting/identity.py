"""Fit the built-in face recogniser: pictures of one person together, others apart (InfoNCE, arXiv:1807.03748).

A person has several pictures, so the loss is the supervised one (Khosla et al., arXiv:2004.11362, section 3.2.2,
equation 2). Half of the people are relatives, who share about half of what makes a person: telling strangers apart
would take no more than the two or three attributes that fill most of the picture.

Letters: P people, N pictures, A attributes, D size of a face's vector.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...io.metadata import write_safetensors
from ...models.arcface import SmallFace
from ..render import ATTRIBUTES, HIDDEN, STYLES, render
from .guide import soften

#: What one keeps from picture to picture: bones, colours, and how much hair there is. How it is cut (hair_length,
#: fringe) changes, a smile bends and widens the mouth, and glasses, shirt, place and light are no part of anybody.
IDENTITY = ("face_width", "face_height", "jaw", "skin", "hair_colour", "hair_volume", "eye_size", "eye_gap")

#: Styles that show all of it, and so can be asked to show the same person as a photo does.
ALIKE = tuple(style for style in STYLES if style != "photo" and not HIDDEN.get(style, set()) & set(IDENTITY))

_PEOPLE, _STYLED = 36, 16  # people in a batch, two photos each, and of these those shown in a style too

_TEMPERATURE = 0.08


def people(count: int, rng: torch.Generator, relatives: bool = False) -> Tensor:
    """People [P, A]; what is not in `IDENTITY` means nothing yet. relatives: the second half resembles the first."""
    everybody = torch.rand(count, len(ATTRIBUTES), generator=rng)
    if relatives:
        half = count // 2
        shared = torch.rand(half, len(ATTRIBUTES), generator=rng) < 0.5
        everybody[half : 2 * half] = torch.where(shared, everybody[:half], everybody[half : 2 * half])
    return everybody


def meet(persons: Tensor, rng: torch.Generator) -> Tensor:
    """The same people [P, A] on another day: all that is not in `IDENTITY` is drawn anew."""
    kept = torch.tensor([name in IDENTITY for name in ATTRIBUTES])
    return torch.where(kept, persons, torch.rand(persons.shape, generator=rng))


def contrast(faces: Tensor, owners: Tensor) -> Tensor:
    """The mean loss of unit vectors [N, D] that belong to `owners` [N]; everybody has at least two."""
    same = (owners[:, None] == owners).fill_diagonal_(False)
    logits = (faces @ faces.mT / _TEMPERATURE).fill_diagonal_(-1e4)  # nobody is compared with the very same picture
    return -((logits.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


def fit(folder: Path, minutes: float, seed: int = 200, log: Path | None = None) -> None:
    """Fit for a time budget and write `identity.safetensors` into folder.

    Every picture is drawn for its step, which takes an eighth of the time of learning from it.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    net = SmallFace()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    owners = torch.cat([torch.arange(_PEOPLE), torch.arange(_PEOPLE), torch.arange(_STYLED)])
    started, step = time.monotonic(), 0
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
        persons = people(_PEOPLE, rng, relatives=True)[torch.randperm(_PEOPLE, generator=rng)]
        style = ALIKE[int(torch.randint(len(ALIKE), (), generator=rng))]
        photos = render(torch.cat([meet(persons, rng), meet(persons, rng)]))
        pictures = soften(torch.cat([photos, render(meet(persons[:_STYLED], rng), style)]), rng)
        with torch.autocast("cpu", torch.bfloat16):
            raw = net(pictures.contiguous(memory_format=torch.channels_last))
        faces = F.normalize(raw.float(), dim=-1)
        loss = contrast(faces, owners)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        keep = min(0.99, 1 - 1 / (step + 1))  # there are only some hundred steps to average over
        with torch.no_grad():
            for name, p in net.named_parameters():
                average[name].lerp_(p, 1 - keep)
        if log and step % 50 == 0:
            with log.open("a") as file:
                nearest = (faces @ faces.mT).fill_diagonal_(-1).argmax(1)
                right = float((owners[nearest] == owners).float().mean())
                file.write(f"{step} {progress:.3f} loss {loss:.3f} nearest is oneself {right:.3f}\n")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.half() for name, p in average.items()}
    write_safetensors(folder / "identity.safetensors", weights, {"kind": "nada_identity", "tells": ",".join(IDENTITY)})
