"""Is the built-in world good enough to judge anything by? Figures on contents nobody was fitted on.

    python -m nada_core.portraits.check

Letters: N pictures, D embedding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..guidance.prompts import TEMPLATES, fill
from ..models.arcface import Identity, load_identity
from ..models.checkpoints import load_generator
from ..models.clip import ClipGuide, built_in_guides, load_guide
from .content import Content
from .fitting.corrupt import KINDS, corrupt
from .fitting.generator import psnr
from .fitting.identity import ALIKE, meet, people
from .judge import NONE, Judge
from .render import ATTRIBUTES, STYLES, readable, render, visible

_HELD_OUT = 987_654


def held_out(count: int) -> Tensor:
    """Contents [N, A] of a seed that no fit uses."""
    return torch.rand(count, len(ATTRIBUTES), generator=torch.Generator().manual_seed(_HELD_OUT))


@torch.no_grad()
def generator_psnr(count: int = 256) -> float:
    """dB of the built-in generator against the renderer."""
    generator, content = load_generator("portraits"), Content.load()
    ws = generator.map(torch.randn(count, generator.z_dim, generator=torch.Generator().manual_seed(_HELD_OUT)))
    pictures = torch.cat([generator.synthesize(part) for part in ws.split(32)])
    return psnr(pictures, render(content(ws)))


def guide_accuracy(guide: ClipGuide, count: int = 24) -> tuple[float, float]:
    """Zero-shot style accuracy: on clean pictures, and under a 5-step L2 attack of length 1 (pictures in 0..1)."""
    texts = F.normalize(torch.stack([guide.encode_text(fill(style, TEMPLATES)).mean(0) for style in STYLES]), dim=-1)
    clean = attacked = total = 0
    for label, style in enumerate(STYLES):
        pictures = render(held_out(count), style)
        labels = torch.full((count,), label)
        clean += int((_logits(guide, texts, pictures).argmax(1) == labels).sum())
        worst = _attack(guide, texts, pictures, labels)
        attacked += int((_logits(guide, texts, worst).argmax(1) == labels).sum())
        total += count
    return clean / total, attacked / total


def _logits(guide: ClipGuide, texts: Tensor, pictures: Tensor) -> Tensor:
    return 50 * guide.encode_images(pictures) @ texts.mT


def _attack(
    guide: ClipGuide, texts: Tensor, pictures: Tensor, labels: Tensor, eps: float = 1.0, steps: int = 5
) -> Tensor:
    """Projected gradient ascent on the cross entropy (Madry et al., arXiv:1706.06083, section 2.1)."""
    reach, delta = 2 * eps, torch.zeros_like(pictures)  # our pictures span 2, the length is told on a span of 1
    for _ in range(steps):
        delta.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(_logits(guide, texts, pictures + delta), labels), delta)
        delta = delta.detach() + 0.4 * reach * slope / _length(slope)
        delta = delta * (reach / _length(delta)).clamp(max=1)
    return (pictures + delta).clamp(-1, 1)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


@torch.no_grad()
def judge_figures(judge: Judge, count: int = 100) -> tuple[float, float, dict[str, float]]:
    """Style accuracy, mean attribute error over what each style shows, share of "none of these" a spoiled kind."""
    contents = held_out(count)
    right, errors, seen = 0, 0.0, 0
    for label, style in enumerate(STYLES):
        logits, read = judge(render(contents, style))
        right += int((logits.argmax(1) == label).sum())
        error = (read - readable(contents)).abs()[:, visible(style)]
        errors, seen = errors + float(error.sum()), seen + error.numel()
    none = {}
    for kind in ("noise", "blur", "speckle", *(k for k in KINDS if k not in ("noise", "blur", "speckle"))):
        spoiled = corrupt(render(contents), torch.Generator().manual_seed(_HELD_OUT), kind)
        none[kind] = float((judge(spoiled)[0].argmax(1) == NONE).float().mean())
    return right / (count * len(STYLES)), errors / seen, none


@torch.no_grad()
def identity_figures(identity: Identity, count: int = 200, style: str = STYLES[0]) -> tuple[float, float]:
    """Share of pairs, half of them of one person, told right at the best threshold; and share of people found among
    all of them by a second picture, in `style`."""
    rng = torch.Generator().manual_seed(_HELD_OUT)
    persons = people(count, rng)
    first, second = identity(render(meet(persons, rng))), identity(render(meet(persons, rng), style))
    alike = first @ second.mT  # [N, N]
    same, others = alike.diagonal(), alike[~torch.eye(count, dtype=torch.bool)]
    told = [float((same > cut).float().mean() + (others <= cut).float().mean()) / 2 for cut in same]
    return max(told), float((alike.argmax(1) == torch.arange(count)).float().mean())


def report() -> Iterator[str]:
    """One line a figure, with the bar it is held to."""
    yield f"generator, held out: {generator_psnr():.2f} dB (at least 30)"
    for name in built_in_guides():
        clean, attacked = guide_accuracy(load_guide(name))
        yield f"guide {name}: style {clean:.1%} (at least 95 %), attacked {attacked:.1%} (at least 75 %)"
    style, error, none = judge_figures(Judge.load())
    yield f"judge: style {style:.1%} (at least 98 %), attribute error {error:.3f} (at most 0.06)"
    identity = load_identity("portraits")
    same, found = identity_figures(identity)
    told = ", ".join(f"{style} {identity_figures(identity, style=style)[0]:.1%}" for style in ALIKE)
    yield f"identity: same person or not {same:.1%} (at least 95 %), found among 200 {found:.1%}; {told}"
    yield "judge says none of these: " + ", ".join(f"{kind} {share:.0%}" for kind, share in none.items())


if __name__ == "__main__":
    for line in report():
        sys.stdout.write(line + "\n")
