"""Train too far, then choose: which of a run's candidates to keep, and when to stop making more.

The authors of StyleGAN-NADA advise to train past the point one likes and to take an earlier state. Here a guide that
never led the run looks at the same latents every so often, because a run flatters the guides it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance import metrics
from ..guidance.shifts import Shift
from ..guidance.targets import clip_targets, weighted_guides
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .config import AdaptConfig

_LOOKED_AT = 64  # latents that a judge looks at


def check_judge(
    judge: ClipGuide | None, guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]], config: AdaptConfig
) -> None:
    if judge is None:
        if config.keep_every:
            raise ValueError(
                "AdaptConfig.keep_every is set, and nobody is there to look; give adapt a judge, a guide "
                "that is not among the guides."
            )
        return
    if not config.keep_every:
        raise ValueError(f"got the judge {judge.name}, who would never look; set AdaptConfig.keep_every, such as 25.")
    if judge.fingerprint in {guide.fingerprint for guide, _ in weighted_guides(guides)}:
        raise ValueError(f"got {judge.name} as judge and as guide; a run flatters its own guides, so take another one.")


def _witness(
    judge: ClipGuide, teacher: Generator, shift: Shift, start: Tensor | None, config: AdaptConfig
) -> Callable[[Generator, int, int], Candidate]:
    """What the judge sees in the same latents at any step. They have random numbers of their own."""
    (target,) = clip_targets(judge, shift, start)
    goal, way = target.target_embedding.cpu(), target.direction.cpu()
    z = torch.randn(_LOOKED_AT, teacher.z_dim, generator=torch.Generator().manual_seed(config.seed))
    with torch.no_grad():
        z = z.to(teacher.w_avg.device)
        ws = teacher.map(z, teacher.one_hot(config.label, _LOOKED_AT), config.psi)

    @torch.no_grad()
    def see(generator: Generator, chunk: int) -> Tensor:
        return torch.cat([metrics.embed(judge, generator.synthesize(part)) for part in ws.split(chunk)])

    before: list[Tensor] = []  # the source, seen once, when it is first asked for

    def look(student: Generator, steps: int, chunk: int) -> Candidate:
        before.extend([] if before else [see(teacher, chunk)])
        after = see(student, chunk)
        return Candidate(
            steps,
            metrics.quality(after, goal) - metrics.quality(before[0], goal),
            metrics.direction(before[0], after, way),
            metrics.diversity(after) / max(metrics.diversity(before[0]), 1e-9),
        )

    return look


#: Diversity, as a share of the source's, below which a candidate loses in proportion. More would punish targets that
#: really are more alike than photos, as sketches and statues are.
DIVERSITY_FLOOR = 0.7


@dataclass(frozen=True)
class Candidate:
    """One state of a run as the held-out guide sees it.

    steps: how many were done. gain: how much nearer the target its pictures are, in cosine, than the source's.
    direction: mean cosine between the edits and the shift. diversity: as a share of the source's.
    """

    steps: int
    gain: float
    direction: float
    diversity: float

    @property
    def score(self) -> float:
        """Gain times direction, less where pictures became too alike. A product needs no scale, and guides differ in
        theirs. What lost ground is worth less than nothing."""
        if self.gain <= 0:
            return self.gain
        return self.gain * max(self.direction, 0.0) * min(1.0, self.diversity / DIVERSITY_FLOOR)

    def __str__(self) -> str:
        return (
            f"quality {self.gain:+.3f}, direction {self.direction:.2f}, diversity {self.diversity:.2f} of the source's"
        )


def best(candidates: Sequence[Candidate]) -> int:
    """The place of the highest score; of equals the first, which is nearer the source."""
    return max(range(len(candidates)), key=lambda place: candidates[place].score)


def is_over(candidates: Sequence[Candidate], patience: int) -> bool:
    """Whether as many candidates in a row as `patience` were no better than an earlier one; 0 waits for ever."""
    return bool(patience and candidates) and len(candidates) - 1 - best(candidates) >= patience


def why(candidates: Sequence[Candidate], judge: str, over: bool) -> str:
    """Why a run returns the state it returns, in a sentence or two."""
    chosen, last = candidates[best(candidates)], candidates[-1]
    told = (
        f"After {chosen.steps} steps, the best of {len(candidates)} candidates to the held-out guide {judge}: {chosen}."
    )
    if chosen is not last:
        told += f" After {last.steps}: {last}."
    return told + (" The run ended there, for lack of anything better." if over else "")
