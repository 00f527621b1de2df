"""Encoders: a photograph to a latent of W+ in one pass or a few.

pSp (Richardson et al., arXiv:2008.00951, section 3): a feature pyramid over a residual trunk, one head a row. e4e (Tov
et al., arXiv:2102.02766, section 4.1): the first row is w, every other an offset to it. ReStyle (Alaluf et al.,
arXiv:2104.02699, section 3): the picture beside what the latent so far shows, in, and what to add to that latent, out,
a few times over; all heads read the last map.

Sizes are those of the tensors, so smaller networks of the same layout load too.

Letters: N pictures, L rows, C width of a row, H = W pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import RawCheckpoint, read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.images import square
from ..models.checkpoints import assemble
from ..models.file_kinds import describe
from ..models.generator import Generator
from ..models.irse import Trunk, trunk_of
from ..models.state_dict import load_weights, shape
from ..models.stylegan2 import Linear
from ..models.stylegan2_layouts import LAYOUTS
from ..runtime.batching import MicroBatcher
from .sampling import Latents


class Design(NamedTuple):
    """What an encoder's type says and its shapes do not."""

    pyramid: bool  # heads read maps of three sizes (pSp, section 3.1); else all read the last
    offsets: bool  # rows after the first are offsets to it (e4e, section 4.1)


# By `encoder_type` in the checkpoint's options, less "ResNet", which the tensors tell.
_DESIGNS = {
    "GradualStyleEncoder": Design(pyramid=True, offsets=False),
    "Encoder4Editing": Design(pyramid=True, offsets=True),
    "BackboneEncoder": Design(pyramid=False, offsets=False),
    "ProgressiveBackboneEncoder": Design(pyramid=False, offsets=True),
}


class Head(nn.Module):
    """A map to one row (pSp's map2style): convolutions that halve it down to one pixel, then a linear layer."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Conv2d(width if index else inputs, width, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class StyleNet(nn.Module):
    """Pictures to rows, differentiable. `side`: of the pictures it was trained on."""

    def __init__(self, trunk: Trunk, design: Design, width: int, depths: list[int]) -> None:
        """width: C. depths: how often each row's head halves its map, which tells the maps of the pyramid apart."""
        super().__init__()
        self.trunk, self.design = trunk, design
        self.levels = [depth - depths[0] for depth in depths]
        self.side = trunk.reduction * 2 ** depths[0]
        deepest = trunk.widths[-1]
        self.styles = nn.ModuleList(Head(deepest, width, depth) for depth in depths)
        if design.pyramid:
            self.latlayer1 = nn.Conv2d(trunk.widths[-2], deepest, 1)
            self.latlayer2 = nn.Conv2d(trunk.widths[-3], deepest, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3 or 6, H, W] in -1..1 -> [N, L, C], what is to be added to the mean of w or to the latent so far."""
        maps = self.trunk(images)
        levels = [maps[-1]]
        if self.design.pyramid:
            for lateral, finer in ((self.latlayer1, maps[-2]), (self.latlayer2, maps[-3])):
                larger = F.interpolate(levels[-1], size=finer.shape[-2:], mode="bilinear", align_corners=True)
                levels.append(larger + lateral(finer))
        rows = [head(levels[level]) for head, level in zip(self.styles, self.levels, strict=True)]
        if self.design.offsets:
            rows = [rows[0], *(rows[0] + offset for offset in rows[1:])]
        return torch.stack(rows, dim=1)


class Encoder(nn.Module):
    """An encoder and the generator it was trained for, frozen.

    kind: "psp", "e4e", "restyle-psp" or "restyle-e4e". decoder: that generator, whose `w_avg` is the mean of w that the
    encoder starts from. side: pixels a side of what the network sees. wide: it sees pictures of 4:3, as the cars' do.
    source: sha256 of the file.
    """

    start: Tensor  # [L, C]

    def __init__(
        self, kind: str, net: StyleNet, decoder: Generator, start: Tensor, wide: bool = False, source: str | None = None
    ) -> None:
        """start: [L, C], the latent that the network's rows are added to."""
        super().__init__()
        self.kind, self.side, self.wide, self.source = kind, net.side, wide, source
        self.net, self.decoder = net.requires_grad_(False), decoder.requires_grad_(False)
        self.register_buffer("start", start)
        self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """It stays in evaluation mode whatever it is asked: a latent must not depend on the others in the batch."""
        return super().train(False)

    @property
    def iterative(self) -> bool:
        """Whether more passes help (ReStyle)."""
        return self.net.trunk.channels == 6

    def encode(
        self,
        images: Tensor,
        iterations: int = 5,
        generator: Generator | None = None,
        batch: int = 4,
        on_pass: Callable[[int, int], None] | None = None,
    ) -> Latents:
        """Pictures [N, 3, H, W] in -1..1 to latents, each independent of its neighbours.

        Pictures should be aligned as those of the training were; the middle square is seen, of cars a picture of 4:3
        or a square with bands above and below. iterations: passes of a ReStyle encoder; the others need one and take
        no notice. batch: pictures at a time; halved when the memory of a GPU runs out. on_pass: called after every
        pass with how many passes, each of one picture, are done and how many there are; what it raises stops the work.

        Latents are absolute points of W+: a generator understands them when its mapping network has the weights of the
        decoder's. The mean of w beside those weights decides about truncation only, yet it is part of `space()`, and
        the one in an encoder's file need not be, bit for bit, the one in the generator's own. Therefore: the result
        belongs to `decoder.space()`; with `generator` (one with the same mapping weights, adapted or not) it belongs to
        that one's.

        Raises:
            ValueError: for pictures that are none, fewer than one iteration or picture at a time, and a generator with
                another mapping network or other rows.
        """
        if iterations < 1 or batch < 1:
            raise ValueError(f"Got {iterations} iterations and batch {batch}, expected at least 1 of each.")
        target = self.decoder if generator is None else generator
        _expect_same_mapping(self.decoder, target)
        seen = self._look(images)
        passes = iterations if self.iterative else 1
        total = passes * len(seen)
        batcher = MicroBatcher(min(batch, len(seen)), "Close what else uses the GPU, or encode on the CPU.")

        def latents(begin: int, size: int) -> Tensor:
            part = seen[begin : begin + size]

            def report(count: int) -> None:
                if on_pass is not None:
                    on_pass(begin * passes + count * len(part), total)

            return self._refine(part.to(self.start.device), passes, report).cpu()

        found: list[Tensor] = []
        done = 0
        while done < len(seen):
            found.append(batcher.run(latents, done))
            done += len(found[-1])
        return Latents(torch.cat(found), "const", target.space())

    @torch.no_grad()
    def _refine(self, seen: Tensor, passes: int, report: Callable[[int], None]) -> Tensor:
        """[N, 3, h, w] -> [N, L, C]: one pass, or ReStyle's loop (section 3.2), which begins at the mean picture."""
        ws = self.start.expand(len(seen), -1, -1)
        for count in range(passes):
            shown = [self._show(ws, same=not count)] if self.iterative else []
            ws = ws + self.net(torch.cat([seen, *shown], dim=1))
            report(count + 1)
        return ws

    def _show(self, ws: Tensor, same: bool) -> Tensor:
        """The decoder's pictures as the network sees them. same: all rows of the batch are equal, draw one."""
        pictures = self.decoder.synthesize(ws[:1] if same else ws, "const").expand(len(ws), -1, -1, -1)
        return self._cut(F.interpolate(pictures, size=(self.side, self.side), mode="area"))

    def _look(self, images: Tensor) -> Tensor:
        """The caller's pictures as the network sees them."""
        if self.wide and images.ndim == 4 and images.shape[3] * 3 == images.shape[2] * 4:
            band = images.shape[2] // 6
            below = images.shape[3] - images.shape[2] - band
            images = F.pad(images, (0, 0, band, below), mode="replicate")
        return self._cut(square(images, self.side))

    def _cut(self, pictures: Tensor) -> Tensor:
        """Of cars, whose generator draws bands above and below, the middle three quarters: rows 32..224 of 256."""
        return pictures[:, :, self.side // 8 : self.side * 7 // 8] if self.wide else pictures


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """A pSp, e4e or ReStyle checkpoint as its authors' programs save it: the encoder, its generator and the mean of w.

    Trunks are IR, IR-SE and ResNet. Raises CheckpointError.
    """
    path = Path(path)
    raw = read_checkpoint(path)
    try:
        encoder = _read(raw)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return encoder.to(device)


def _read(raw: RawCheckpoint) -> Encoder:
    tensors = _part(raw.tensors, "state_dict.") or raw.tensors
    trained, drawing = _part(tensors, "encoder."), _part(tensors, "decoder.")
    if not any(name.startswith("body.") for name in trained):
        raise UnsupportedCheckpointError(
            f"not an encoder; it looks like {describe(raw, 'load_encoder')}. Expected a pSp, e4e or ReStyle "
            "checkpoint, a .pt with state_dict, opts and latent_avg."
        )
    if not drawing:
        raise CheckpointError(
            "an encoder without its decoder, the generator that gives its latents their meaning. "
            "The file was shortened; take the authors' own."
        )
    opts = _options(raw.hints)
    kind = opts.get("encoder_type")
    design = _DESIGNS.get(str(kind).removeprefix("ResNet"))
    if design is None:
        raise UnsupportedCheckpointError(
            f"its options name the encoder type {kind!r}; known are "
            f"{', '.join(_DESIGNS)}, and each but Encoder4Editing with ResNet before it."
        )
    decoder = _decoder(raw, drawing)
    net = _style_net(trained, design)
    if len(net.styles) != decoder.num_ws or shape(trained, "styles.0.linear.weight", 2)[0] != decoder.w_dim:
        raise CheckpointError(
            f"the encoder has {len(net.styles)} rows and its decoder reads {decoder.num_ws} of width "
            f"{decoder.w_dim}: they do not belong together. Take the authors' own file."
        )
    iterative = net.trunk.channels == 6
    # Where the options do not say, the mean is added, as in all that was published.
    centred = iterative or opts.get("start_from_latent_avg", True)
    start = _mean(raw.tensors, decoder) if centred else torch.zeros(decoder.num_ws, decoder.w_dim)
    family = "e4e" if design.offsets else "psp"
    wide = "cars" in str(opts.get("dataset_type", ""))
    return Encoder(f"restyle-{family}" if iterative else family, net, decoder, start, wide, raw.sha256)


def _decoder(raw: RawCheckpoint, tensors: Mapping[str, Tensor]) -> Generator:
    """The generator in the file; the mean of w is the encoder's, or estimated where the file has none."""
    own = dict(tensors)
    if (mean := raw.tensors.get("latent_avg")) is not None:
        own["latent_avg"] = mean[0] if mean.ndim == 2 else mean  # the same row once or L times
    inner = RawCheckpoint(own, {}, raw.container, raw.sha256)
    layout = next((layout for layout in LAYOUTS if "" in layout.prefixes(inner)), None)
    if layout is None:
        raise UnsupportedCheckpointError(
            f"its decoder is no StyleGAN2; its tensors begin with {sorted(tensors)[:3]}. "
            "Encoders of StyleGAN3 are not supported."
        )
    try:
        decoder = assemble(layout.read(inner, ""))
    except ValueError as error:
        raise CheckpointError(f"its decoder, read as {layout.name}: {error}") from error
    decoder.source = raw.sha256
    return decoder


def _mean(tensors: Mapping[str, Tensor], decoder: Generator) -> Tensor:
    """[L, C]: the mean of w the encoder was trained to start from; files have it once or once a row."""
    mean = tensors.get("latent_avg", decoder.w_avg).float()
    rows, width = decoder.num_ws, decoder.w_dim
    if mean.shape not in ((width,), (1, width), (rows, width)):
        raise CheckpointError(
            f"latent_avg has shape {list(mean.shape)}, expected [{width}], [1, {width}] or "
            f"[{rows}, {width}]. The file is damaged, or its parts do not belong together."
        )
    return mean.expand(rows, -1).clone()


def _style_net(state: Mapping[str, Tensor], design: Design) -> StyleNet:
    depths: list[int] = []
    while f"styles.{len(depths)}.linear.weight" in state:
        head = f"styles.{len(depths)}.convs."
        depths.append(sum(name.startswith(head) and name.endswith("weight") for name in state))
    width = shape(state, "styles.0.linear.weight", 2)[0]
    with torch.device("meta"):
        trunk = trunk_of(state)
        levels = {depth - depths[0] for depth in depths}
        if trunk.channels not in (3, 6):
            raise UnsupportedCheckpointError(
                f"the encoder reads {trunk.channels} channels: sketches or label maps, "
                "not photographs. Take one for photographs, with 3 or 6."
            )
        possible = {0, 1, 2} if design.pyramid else {0}
        if not depths[0] or not levels <= possible or len(trunk.widths) < len(possible):
            raise CheckpointError(
                f"its heads halve their maps {depths} times over {len(trunk.widths)} stages, which "
                "does not fit its type. The file is damaged, or a variant that is not supported."
            )
        net = StyleNet(trunk, design, width, depths)
    # What else lies in the encoder is not run by this type; the authors' own loaders leave it as well.
    used = {*trunk.layers, "styles", *(("latlayer1", "latlayer2") if design.pyramid else ())}
    own = {name: value for name, value in state.items() if name.partition(".")[0] in used}
    load_weights(
        net, {f"trunk.{name}" if name.partition(".")[0] in trunk.layers else name: value for name, value in own.items()}
    )
    return net


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _options(hints: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of the training run, which are a dict in some files and a Namespace in others."""
    told = hints.get("opts")
    if isinstance(told, Mapping):
        return told
    return {name.removeprefix("opts."): value for name, value in hints.items() if name.startswith("opts.")}


def _expect_same_mapping(decoder: Generator, generator: Generator) -> None:
    """The weights only: see `Encoder.encode` about the mean of w."""
    ours, theirs = dict(decoder.mapping.named_parameters()), dict(generator.mapping.named_parameters())
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)
    if not same or (decoder.num_ws, decoder.w_dim) != (generator.num_ws, generator.w_dim):
        raise ValueError(
            "Got a generator whose mapping network is not that of the encoder's own, expected the one "
            "that the encoder was trained for, or one adapted from it; leave it out to use "
            "encoder.decoder."
        )
