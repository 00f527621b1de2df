"""Measure edits on the built-in generator: which attribute a direction changes, and what a text changes.

    python -m benchmarks.editing                          print both tables
    python -m benchmarks.editing --identity portraits     also compare faces in the second table

Directions: 64 latents are moved by -2 to 2 standard deviations of w, and the judge predicts the attributes of the
images. SeFa runs on all rows and on some of them. Columns:

- main attribute: the one that changes most, by mean |prediction at 2 - prediction at -2|;
- correlation: between strength and prediction of that attribute, after subtracting the mean of each latent;
- share: the change of that attribute divided by the sum over all attributes; runner-up: the second largest share;
- axis: cosine between the direction and the axis of w that encodes that attribute.

Texts: each text names one attribute. Columns:

- prediction: the judge's mean prediction of that attribute before and after;
- correct: share of images whose prediction lies in the range that the text names, before and after;
- others: mean |change of prediction| over the other attributes; runner-up: the largest of them;
- photo: share of images that the judge still classifies as photos;
- same face: cosine between the identity embeddings before and after.
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

#: Settings for the built-in generator (10 rows of 64 numbers): the best found, and the loss of the StyleCLIP paper.
TEXT_EDITS = {
    "direction, w": TextEditConfig(objective="direction", space="w", steps=40, l2=0.0005, batch=16),
    "global, w+": TextEditConfig(objective="global", space="w+", steps=40, l2=0.002, batch=16),
}


def predict(judge: Judge, generator: Generator, latents: Latents) -> Tensor:
    """Predict the attributes of the images of latents, [N, A]."""
    with torch.no_grad():
        return judge(render(generator, latents, batch=32))[1]


def direction_rows(
    name: str, directions: Directions, judge: Judge, generator: Generator, content: Content, latents: Latents
) -> Iterator[str]:
    """One table row for each direction."""
    for direction in (directions[index] for index in range(len(directions))):
        predicted = torch.stack(
            [predict(judge, generator, edit(latents, direction, s)) for s in STRENGTHS]
        )  # [S, N, A]
        movement = (predicted[-1] - predicted[0]).abs().mean(0)
        share = movement / movement.sum()
        main, next_one = share.argsort(descending=True)[:2].tolist()
        centred = predicted[:, :, main] - predicted[:, :, main].mean(0)
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
    yield "| method | direction | main attribute | correlation | share | runner-up | axis |"
    yield "|---|---|---|---|---|---|---|"
    methods = {"SeFa": sefa(generator, count), "PCA": principal(generator, count)}
    methods |= {f"SeFa, rows {first} to {last}": sefa(generator, count, (first, last)) for first, last in ROWS}
    for name, directions in methods.items():
        yield from direction_rows(name, directions, judge, generator, content, latents)


def text_table(judge: Judge, generator: Generator, latents: Latents, guide: str, identity: str | None) -> Iterator[str]:
    """One table row for each text and setting."""
    clip, identity_net = load_guide(guide), load_identity(identity) if identity else None
    yield "| text | objective, space | attribute | prediction | correct | others | runner-up | photo | same face |"
    yield "|---|---|---|---|---|---|---|---|---|"
    before, images = predict(judge, generator, latents), render(generator, latents, batch=32)
    for text, attribute in TEXTS.items():
        column, wanted = ATTRIBUTES.index(attribute), WORDS[attribute].index(text)
        for name, config in TEXT_EDITS.items():
            edited = edit_by_text(generator, latents, clip, TextShift(SOURCE, f"{SOURCE} with {text}"), config)
            changed = render(generator, edited, batch=32)
            with torch.no_grad():
                style, after = judge(changed)
                same = f"{(identity_net(images) * identity_net(changed)).sum(1).mean():.2f}" if identity_net else "-"
            correct = [(slices_of(one.clamp(0, 1))[:, column] == wanted).float().mean() for one in (before, after)]
            movement = (after - before).abs().mean(0)
            movement[column] = 0
            most = int(movement.argmax())
            photo = (style.argmax(1) == STYLES.index(SOURCE)).float().mean()
            yield (
                f"| {text} | {name} | {attribute} | {before[:, column].mean():.2f} to {after[:, column].mean():.2f} "
                f"| {correct[0]:.0%} to {correct[1]:.0%} | {movement.sum() / (len(ATTRIBUTES) - 1):.3f} "
                f"| {ATTRIBUTES[most]} {movement[most]:.2f} | {photo:.0%} | {same} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.editing", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=6, help="directions of each method (%(default)s)")
    parser.add_argument("--latents", type=int, default=64, help="latents moved along directions (%(default)s)")
    parser.add_argument("--texts-on", type=int, default=12, help="latents edited by texts (%(default)s)")
    parser.add_argument("--guide", default="portraits", help="CLIP guide of the text edits (%(default)s)")
    parser.add_argument("--identity", help="identity network, a name or a file (default: none)")
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
