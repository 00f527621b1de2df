"""Pairs of a latent and its edited image: the data of a training (DATID-3D, arXiv:2211.16374), its batches and its
hold-out.

Shapes: N pairs, P pairs of a batch, L rows of W+, C width of a row, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..guidance.pair_filter import wrong_pairs
from ..guidance.pair_losses import PairLoss, change_map
from ..guidance.reconstruction import FaceRecognizer, Features
from ..guidance.registration import translated, translations
from ..io.images import square
from ..models.clip import ClipGuide
from ..models.generator import Generator, Noise, check_latents
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import check_batch_size, shard
from .batch import Batch
from .config import PairsConfig
from .validation import HoldOutLoss

_MIN_HOLD_OUT = 8  # with fewer pairs, none is held out


class LatentsLike(Protocol):
    """Points of W+: `nada_core.Latents`."""

    @property
    def ws(self) -> Tensor: ...

    @property
    def noise(self) -> str | Sequence[Tensor]: ...

    @property
    def space(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Latents with the source's images and the edited ones, on the CPU.

    `of` checks them, `prepared` makes them ready for training.

    Attributes:
        after: the edits as they were given. targets: the edits with their moves undone.
        rows: pairs to train with. held_out: pairs to choose the best step with. rejected: reasons by index.
    """

    source: Generator
    ws: Tensor  # [N, L, C]
    noise: Noise
    after: Tensor  # [N, 3, R, R]
    config: PairsConfig
    perceptual: Features | None = None
    before: Tensor = field(default_factory=lambda: torch.empty(0))  # [N, 3, R, R]
    targets: Tensor = field(default_factory=lambda: torch.empty(0))  # [N, 3, R, R]
    rows: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    rejected: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Generator,
        latents: LatentsLike,
        images: Tensor,
        config: PairsConfig,
        perceptual: Features | None = None,
    ) -> Pairs:
        """Check latents and images [N, C, H, W].

        Raises:
            ValueError: for latents of another generator or number, fewer than two pairs, and images that are not
                square or smaller than the generator's.
        """
        check_latents(source, latents.ws, latents.space, len(images))
        height, width = images.shape[-2:]
        if height != width or height < source.resolution:
            raise ValueError(
                f"Got edited images of {width} x {height} pixels, expected squares of {source.resolution} pixels or "
                "more, uncropped, so that they cover what the generator drew."
            )
        if len(images) < 2:
            raise ValueError(f"Got {len(images)} pair, expected at least 2; 32 are a good number.")
        if config.lpips and perceptual is None:
            raise ValueError(
                f"The lpips term weighs {config.lpips:g}, but there is no network to compute it; pass "
                "perceptual=load_perceptual(...), or set lpips to 0."
            )
        noise: Noise = latents.noise if isinstance(latents.noise, str) else list(latents.noise)  # type: ignore[assignment]
        after = square(images, source.resolution).detach().cpu()
        return cls(source, latents.ws.cpu(), noise, after, config, perceptual)

    def prepared(self, guides: Sequence[tuple[ClipGuide, float]], identity: FaceRecognizer | None, seed: int) -> Pairs:
        """Render the source's images, reject wrong pairs, undo moves, and hold some of the pairs out.

        Raises:
            ValueError: when fewer than two pairs are left, and for images in another order than the latents.
        """
        before = self.render(self.source, torch.arange(len(self.ws))).clamp(-1, 1)
        config, device = self.config, self.source.w_avg.device
        embed = None if identity is None else lambda images: identity(images.to(device))
        rejected = wrong_pairs(before, self.after, guides, embed, config.min_direction, config.max_rank)
        rows = [row for row in range(len(self.ws)) if row not in rejected]
        if len(rows) < 2:
            reason = "; ".join(f"pair {row}: {reason}" for row, reason in list(rejected.items())[:3])
            raise ValueError(f"Got {len(self.ws)} pairs, of which {len(rows)} are left after filtering ({reason}).")
        targets = self._unmoved(before, rows) if config.align else self.after
        count = round(config.hold_out * len(rows)) if len(rows) >= _MIN_HOLD_OUT else 0
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        held_out = sorted(rows[index] for index in order[:count])
        rows = [row for row in rows if row not in held_out]
        return replace(
            self, before=before, targets=targets, rows=tuple(rows), held_out=tuple(held_out), rejected=rejected
        )

    def _unmoved(self, before: Tensor, rows: list[int]) -> Tensor:
        """The edits, those of `rows` with their moves undone."""
        moves = translations(before[rows], self.after[rows], self.config.align)
        if not moves.any():
            return self.after
        targets = self.after.clone()
        for row, move in zip(rows, moves, strict=True):
            targets[row] = translated(self.after[row : row + 1], -move[None])[0]
        return targets

    def check(self, guided: bool) -> None:
        """Raise ValueError for settings that need CLIP models without one, and for batches that cannot be shared."""
        training = self.config.training
        for name, unfit in (
            ("layers.mode is 'adaptive'", training.layers.mode == "adaptive"),
            (f"fisher_samples is {training.fisher_samples}", training.fisher_samples > 0),
        ):
            if unfit and not guided:
                raise ValueError(f"AdaptConfig.{name}, which needs a CLIP model and a shift; pass both, or change it.")
        check_batch_size(min(training.batch, len(self.rows)))

    def settings(self) -> dict[str, Any]:
        """A JSON-ready description of the pairs that were given."""
        settings = {name: value for name, value in asdict(self.config).items() if name != "training"}
        return {"count": len(self.ws), **settings}

    def describe(self) -> dict[str, Any]:
        """The part of the provenance: also how many pairs were used, and which ones were rejected."""
        use = {"trained": len(self.rows), "held_out": len(self.held_out), "rejected": self.rejected}
        return {**self.settings(), **use}

    def tensors(self) -> dict[str, Tensor]:
        """Everything of the pairs that decides the result, for the fingerprint of the run."""
        maps = [] if isinstance(self.noise, str) else self.noise
        noise = {f"pairs.noise.{index}": one for index, one in enumerate(maps)}
        return {"pairs.ws": self.ws, "pairs.images": self.after, **noise}

    @torch.no_grad()
    def render(self, generator: Generator, rows: Tensor, chunk: int = 4) -> Tensor:
        """The generator's images of these latents, on the CPU."""

        def run(size: int) -> Tensor:
            parts = ((self.ws[part].to(generator.w_avg), self.noise_of(part)) for part in rows.split(size))
            return torch.cat([generator.synthesize(ws, noise).cpu() for ws, noise in parts])

        return MicroBatcher(chunk).run(run)

    def noise_of(self, rows: Tensor) -> Noise:
        """The noise of these latents: a name, or maps [n, 1, R, R]."""
        if isinstance(self.noise, str):
            return self.noise
        device = self.source.w_avg.device
        maps = (m.expand(1, 1, *m.shape[-2:]) if m.ndim == 2 else m for m in self.noise)
        return [m[rows if len(m) > 1 else torch.zeros_like(rows)].to(device, non_blocking=True) for m in maps]

    def loss(self, rows: Tensor, count: int) -> PairLoss:
        """The loss of these pairs as the first rows of a batch of `count` latents."""
        like = self.source.w_avg
        before, targets = (images[rows].to(like, non_blocking=True) for images in (self.before, self.targets))
        change = change_map(before, targets, self.config.focus)
        return PairLoss(targets, change, count, self.config.weights, self.perceptual)

    def add_to(self, batch: Batch, rng: torch.Generator, keep: bool) -> Batch:
        """Put pairs before the random latents of a batch, which stay only with `keep`: for the CLIP terms."""
        config, count = self.config, len(self.rows)
        size = min(config.training.batch, count)
        drawn = torch.tensor(self.rows)[torch.randperm(count, generator=rng)[:size]]
        partners = torch.tensor(self.rows)[torch.randint(count, (size,), generator=rng)]
        share = torch.rand(size, 1, 1, generator=rng)
        rows, partners, share = shard(drawn), shard(partners), shard(share)
        ws, noise_rows = [self.ws[rows].to(batch.ws, non_blocking=True)], [rows]
        if config.locality:
            ws.append(self.ws[rows].lerp(self.ws[partners], share).to(batch.ws, non_blocking=True))
            noise_rows.append(rows)
        if keep:
            ws.append(batch.ws)
            noise_rows.append(torch.arange(len(batch.ws)) % len(self.ws))
        losses = [self.loss(rows, sum(map(len, ws)))]
        if config.locality:
            losses.append(self._locality(ws[1], rows, partners, share, losses[0]))
        return replace(batch, ws=torch.cat(ws), noise=self.noise_of(torch.cat(noise_rows)), losses=tuple(losses))

    def _locality(self, ws: Tensor, rows: Tensor, partners: Tensor, share: Tensor, loss: PairLoss) -> PairLoss:
        """The loss of latents between two pairs: their edit should lie between the edits of the pairs."""
        edits, others = (self.targets[index] - self.before[index] for index in (rows, partners))
        edits = edits.lerp(others, share[..., None])
        targets = self.source.synthesize(ws, self.noise_of(rows)) + edits.to(ws, non_blocking=True)
        weights = {"locality": self.config.locality}
        change = torch.ones_like(targets[:, :1])
        return replace(loss, targets=targets, change=change, weights=weights, first=len(rows))


class HoldOut:
    """Measures checkpoints by their loss on the pairs that are held out."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.rows = pairs, torch.tensor(pairs.held_out)
        self.loss = pairs.loss(self.rows, len(self.rows))

    @torch.no_grad()
    def measure(self, student: Generator, steps: int, chunk: int) -> HoldOutLoss:
        """Measure the student as it is."""
        images = self.pairs.render(student, self.rows, chunk).to(student.w_avg)
        parts = [self.loss.target_terms(images[rows], rows) for rows in torch.arange(len(images)).split(chunk)]
        weights = self.loss.weights
        mean = {name: torch.cat([part[name] for part in parts]).mean().item() for name in weights}
        return HoldOutLoss(steps, sum(weights[name] * mean[name] for name in weights))
