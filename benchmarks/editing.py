"""Editing in the built-in world: which attribute a direction moves, and what a text moves.

    python -m benchmarks.editing                          print both tables
    python -m benchmarks.editing --identity portraits     the second one with a recogniser's word on who it is

A direction moves 64 latents by -2 to 2 standard deviations of w, and the independent judge reads the attributes off the
pictures. **correlation**: of strength and reading of the attribute that moves most, each latent's own mean removed.
**share**: of all movement, the mean |reading at 2 - reading at -2| over attributes, what falls on it. **axis**: cosine
of the direction with the axis of w that holds that attribute. SeFa is asked for all rows and for some.

A text is to move the attribute it names. **right**: share of pictures whose reading falls where the text says.
**others moved**: mean |change of reading| over the other attributes. **same face**: cosine, to the recogniser.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from nada_core import Generator, TextShift, load_generator, load_guide, render, sample
from nada_core.latents.directions import Directions, edit, principal, sefa
from nada_core.latents.sampling import Latents
from nada_core.latents.text_edit import TextEditConfig, edit_by_text
from nada_core.models.arcface import load_identity
from nada_core.portraits import ATTRIBUTES, SOURCE, STYLES, Judge
from nada_core.portraits.content import Content
from nada_core.portraits.fitting.captions import WORDS, slices_of

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
ROWS = ((0, 3), (3, 6), (6, 10))
TEXTS = {
    "glasses": "glasses",
    "dark skin": "skin",
    "blond hair": "hair_colour",
    "black hair": "hair_colour",
    "a bright wall": "background_light",
    "standing left": "shift_x",
}

#: For a generator this small, whose latents are 10 rows of 64 numbers: the best that was found, and the paper's terms.
TEXT_EDITS = {
    "direction, w": TextEditConfig(objective="direction", space="w", steps=40, l2=0.0005, batch=16),
    "global, w+": TextEditConfig(objective="global", space="w+", steps=40, l2=0.002, batch=16),
}


def read(judge: Judge, generator: Generator, latents: Latents) -> Tensor:
    """What the judge reads off the pictures of latents, [N, A]."""
    with torch.no_grad():
        return judge(render(generator, latents, batch=32))[1]


def along(
    name: str, directions: Directions, judge: Judge, generator: Generator, content: Content, latents: Latents
) -> Iterator[str]:
    """A row of the table a direction."""
    for direction in (directions[index] for index in range(len(directions))):
        read_off = torch.stack([read(judge, generator, edit(latents, direction, s)) for s in STRENGTHS])  # [S, N, A]
        movement = (read_off[-1] - read_off[0]).abs().mean(0)
        share = movement / movement.sum()
        main, next_one = share.argsort(descending=True)[:2].tolist()
        centred = read_off[:, :, main] - read_off[:, :, main].mean(0)
        strength = torch.tensor(STRENGTHS)[:, None].expand_as(centred)
        correlation = torch.corrcoef(torch.stack([strength.flatten(), centred.flatten()]))[0, 1]
        vector = direction.vectors[0].sum(0)
        axis = torch.cosine_similarity(vector, content.basis[main], 0).abs()
        yield (
            f"| {name} | {direction.names[0]} | {ATTRIBUTES[main]} | {correlation:+.2f} | {share[main]:.2f} "
            f"| {ATTRIBUTES[next_one]} {share[next_one]:.2f} | {axis:.2f} |"
        )


def directions_table(
    judge: Judge, generator: Generator, content: Content, latents: Latents, count: int
) -> Iterator[str]:
    yield "| found by | direction | moves most | correlation | share | runner-up | axis |"
    yield "|---|---|---|---|---|---|---|"
    found = {"SeFa": sefa(generator, count), "PCA": principal(generator, count)}
    found |= {f"SeFa, rows {first} to {last}": sefa(generator, count, (first, last)) for first, last in ROWS}
    for name, directions in found.items():
        yield from along(name, directions, judge, generator, content, latents)


def text_table(judge: Judge, generator: Generator, latents: Latents, guide: str, identity: str | None) -> Iterator[str]:
    """What a text does to its own attribute, to the others, to the style and to the face."""
    eyes, recogniser = load_guide(guide), load_identity(identity) if identity else None
    yield "| text | objective, space | attribute | read | right | others moved | runner-up | photo | same face |"
    yield "|---|---|---|---|---|---|---|---|---|"
    before, pictures = read(judge, generator, latents), render(generator, latents, batch=32)
    for text, attribute in TEXTS.items():
        column, wanted = ATTRIBUTES.index(attribute), WORDS[attribute].index(text)
        for name, config in TEXT_EDITS.items():
            moved = edit_by_text(generator, latents, eyes, TextShift(SOURCE, f"{SOURCE} with {text}"), config)
            changed = render(generator, moved, batch=32)
            with torch.no_grad():
                style, after = judge(changed)
                same = f"{(recogniser(pictures) * recogniser(changed)).sum(1).mean():.2f}" if recogniser else "-"
            right = [(slices_of(one.clamp(0, 1))[:, column] == wanted).float().mean() for one in (before, after)]
            movement = (after - before).abs().mean(0)
            movement[column] = 0
            most = int(movement.argmax())
            photo = (style.argmax(1) == STYLES.index(SOURCE)).float().mean()
            yield (
                f"| {text} | {name} | {attribute} | {before[:, column].mean():.2f} to {after[:, column].mean():.2f} "
                f"| {right[0]:.0%} to {right[1]:.0%} | {movement.sum() / (len(ATTRIBUTES) - 1):.3f} "
                f"| {ATTRIBUTES[most]} {movement[most]:.2f} | {photo:.0%} | {same} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.editing", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=6, help="directions of each kind (%(default)s)")
    parser.add_argument("--latents", type=int, default=64, help="latents that are moved (%(default)s)")
    parser.add_argument("--texts-on", type=int, default=12, help="latents that texts move (%(default)s)")
    parser.add_argument("--guide", default="portraits", help="the guide that reads the texts (%(default)s)")
    parser.add_argument("--identity", help="a face recogniser, a name or a file; without one no faces are compared")
    args = parser.parse_args()
    judge, generator, content = Judge.load(), load_generator("portraits"), Content.load()
    latents = sample(generator, range(50_000, 50_000 + args.latents), psi=1.0)
    for line in directions_table(judge, generator, content, latents, args.count):
        sys.stdout.write(line + "\n")
    sys.stdout.write("\n")
    for line in text_table(judge, generator, latents[: args.texts_on], args.guide, args.identity):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
