"""Measure the built-in world on contents that no fit used: `python -m nada_core.portraits.check`.

Further CLIP models of the world are named by their configs: `... check out/misalignment/guide-captions.json`.

Letters: N pictures, A attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..guidance.prompts import TEMPLATES, fill
from ..guidance.shifts import TextShift
from ..models.arcface import Identity, load_identity
from ..models.checkpoints import load_generator
from ..models.clip import ClipGuide
from ..models.clip_loading import built_in_guides, load_guide
from .content import Content
from .fitting.corrupt import KINDS, corrupt
from .fitting.generator import psnr
from .fitting.identity import IDENTITY_STYLES, resample_context, sample_people
from .judge import BROKEN, CLASSES, Judge
from .misalignment import PictureSpan
from .render import ATTRIBUTES, STYLES, readable, render, visible

_SEED = 987_654  # no fit uses it


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _contents(count: int) -> Tensor:
    return torch.rand(count, len(ATTRIBUTES), generator=_rng())


@torch.no_grad()
def generator_psnr(count: int = 256) -> float:
    """Return the PSNR in dB of the built-in generator against the renderer."""
    generator, content = load_generator("portraits"), Content.load()
    ws = generator.map(torch.randn(count, generator.z_dim, generator=_rng()))
    pictures = torch.cat([generator.synthesize(part) for part in ws.split(32)])
    return psnr(pictures, render(content(ws)))


def guide_accuracy(guide: ClipGuide, count: int = 24) -> tuple[float, float]:
    """Return the zero-shot style accuracy on clean pictures, and under a 5-step L2 attack of length 1 in 0..1."""
    texts = F.normalize(torch.stack([guide.encode_text(fill(style, TEMPLATES)).mean(0) for style in STYLES]), dim=-1)
    clean, attacked = [], []
    for label, style in enumerate(STYLES):
        pictures = render(_contents(count), style)
        labels = torch.full((count,), label)
        clean.append(_logits(guide, texts, pictures).argmax(1) == labels)
        attacked.append(_logits(guide, texts, _attack(guide, texts, pictures, labels)).argmax(1) == labels)
    return _share(torch.cat(clean)), _share(torch.cat(attacked))


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())


def _logits(guide: ClipGuide, texts: Tensor, pictures: Tensor) -> Tensor:
    return 50 * guide.encode_images(pictures) @ texts.mT


def _attack(guide: ClipGuide, texts: Tensor, pictures: Tensor, labels: Tensor, steps: int = 5) -> Tensor:
    """Projected gradient ascent on the cross entropy (Madry et al., arXiv:1706.06083, section 2.1)."""
    radius, delta = 2.0, torch.zeros_like(pictures)  # a length of 1 in 0..1 is 2 in -1..1
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(_logits(guide, texts, pictures + delta), labels), delta)
        delta = delta.detach() + 0.4 * radius * gradient / _norm(gradient)
        delta = delta * (radius / _norm(delta)).clamp(max=1)
    return (pictures + delta).clamp(-1, 1)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


@torch.no_grad()
def judge_figures(judge: Judge, count: int = 100) -> tuple[float, float, dict[str, float]]:
    """Return the style accuracy, the mean error of visible attributes, and the share of each corruption detected."""
    contents = _contents(count)
    correct, errors = [], []
    for label, style in enumerate(STYLES):
        logits, predicted = judge(render(contents, style))
        correct.append(logits.argmax(1) == label)
        errors.append((predicted - readable(contents)).abs()[:, visible(style)].flatten())
    broken, pictures = CLASSES.index(BROKEN), render(contents)
    detected = {kind: _share(judge(corrupt(pictures, _rng(), kind))[0].argmax(1) == broken) for kind in KINDS}
    return _share(torch.cat(correct)), float(torch.cat(errors).mean()), detected


@torch.no_grad()
def identity_figures(identity: Identity, count: int = 200, style: str = STYLES[0]) -> tuple[float, float]:
    """Return two accuracies of the face network, for photos against pictures in `style`.

    Returns:
        Verification: whether two pictures show one person, at the best threshold, half of the pairs being equal.
        Identification: whether the nearest of all `count` pictures in `style` shows the person of the photo.
    """
    rng = _rng()
    people = sample_people(count, rng)
    first = identity(render(resample_context(people, rng)))
    similarity = first @ identity(render(resample_context(people, rng), style)).mT  # [N, N]
    same, others = similarity.diagonal(), similarity[~torch.eye(count, dtype=torch.bool)]
    verified = max((_share(same > threshold) + _share(others <= threshold)) / 2 for threshold in same)
    return verified, _share(similarity.argmax(1) == torch.arange(count))


@torch.no_grad()
def misalignment_lines(guide: ClipGuide) -> Iterator[str]:
    """Yield one line a target: how far the text direction is from the mean offset of the pictures."""
    span = PictureSpan.measure(guide)
    for target in STYLES[1:]:
        m = span.misalignment(TextShift(STYLES[0], target).direction(guide), STYLES[0], target)
        yield f"misalignment {guide.name}, {target}: {m.total:.4f} (leak {m.leak:.4f}, noise {m.noise:.4f})"


def report(further: Sequence[Path] = ()) -> Iterator[str]:
    """Yield one line a figure, with its threshold. further: configs of CLIP models, next to their weights."""
    yield f"generator, held out: {generator_psnr():.2f} dB (at least 30)"
    guides = [load_guide(name) for name in built_in_guides()]
    guides += [load_guide(path.with_suffix(".safetensors"), path) for path in further]
    for guide in guides:
        clean, attacked = guide_accuracy(guide)
        yield f"guide {guide.name}: style {clean:.1%} (at least 95 %), attacked {attacked:.1%} (at least 75 %)"
    for guide in guides:
        yield from misalignment_lines(guide)
    style, error, detected = judge_figures(Judge.load())
    yield f"judge: style {style:.1%} (at least 98 %), attribute error {error:.3f} (at most 0.06)"
    yield "judge, broken images detected: " + ", ".join(f"{kind} {share:.0%}" for kind, share in detected.items())
    identity = load_identity("portraits")
    verified, identified = identity_figures(identity)
    yield f"identity: verification {verified:.1%} (at least 95 %), identification among 200 {identified:.1%}"
    figures = ((style, identity_figures(identity, style=style)[0]) for style in IDENTITY_STYLES)
    yield "identity, verification by style: " + ", ".join(f"{style} {share:.1%}" for style, share in figures)


if __name__ == "__main__":
    for line in report([Path(path) for path in sys.argv[1:]]):
        sys.stdout.write(line + "\n")
