"""Train too far, then choose: which of a run's candidates to keep, and when to stop making more.

The authors of StyleGAN-NADA advise to train past the point one likes and to take an earlier state. Here a guide that
never led the run looks at the same latents every so often, because a run flatters the guides it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Diversity, as a share of the source's, below which a candidate loses in proportion. More would punish targets that
#: really are more alike than photos, as sketches and statues are.
ENOUGH = 0.7


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
        return self.gain * max(self.direction, 0.0) * min(1.0, self.diversity / ENOUGH)

    def __str__(self) -> str:
        return (f"quality {self.gain:+.3f}, direction {self.direction:.2f}, diversity {self.diversity:.2f} of the "
                "source's")  # fmt: skip


def best(candidates: Sequence[Candidate]) -> int:
    """The place of the highest score; of equals the first, which is nearer the source."""
    return max(range(len(candidates)), key=lambda place: candidates[place].score)


def is_over(candidates: Sequence[Candidate], patience: int) -> bool:
    """Whether as many candidates in a row as `patience` were no better than an earlier one; 0 waits for ever."""
    return bool(patience and candidates) and len(candidates) - 1 - best(candidates) >= patience


def why(candidates: Sequence[Candidate], judge: str, over: bool) -> str:
    """Why a run returns the state it returns, in a sentence or two."""
    chosen, last = candidates[best(candidates)], candidates[-1]
    told = (f"After {chosen.steps} steps, the best of {len(candidates)} candidates to the held-out guide {judge}: "
            f"{chosen}.")  # fmt: skip
    if chosen is not last:
        told += f" After {last.steps}: {last}."
    return told + (" The run ended there, for lack of anything better." if over else "")
