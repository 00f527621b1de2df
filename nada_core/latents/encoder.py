"""Encoders: images to latents of W+ in one pass, or a few.

pSp (Richardson et al., arXiv:2008.00951, section 3): a feature pyramid on a residual trunk, one head per row. e4e (Tov
et al., arXiv:2102.02766, section 4.1): rows after the first are offsets to it. ReStyle (Alaluf et al.,
arXiv:2104.02699, section 3): reads the image next to the image of the latent so far, and adds to that latent.
Sizes come from the tensors, so smaller networks of the same layout load too.

Letters: N images, L rows, C width of a row, H = W pixels a side.
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

_MOST_ROWS = 18  # of W+ at 1024 pixels
_MOST_CONVS = 10  # of a head, which halve 1024 pixels to one


class Design(NamedTuple):
    """What the type of an encoder fixes and its shapes do not."""

    pyramid: bool  # heads read maps of three sizes (pSp, section 3.1); else all read the last map
    offsets: bool  # rows after the first are offsets to it (e4e, section 4.1)


# By `encoder_type` in the options of a checkpoint, without the prefix "ResNet", which the tensors tell.
_DESIGNS = {
    "GradualStyleEncoder": Design(pyramid=True, offsets=False),
    "Encoder4Editing": Design(pyramid=True, offsets=True),
    "BackboneEncoder": Design(pyramid=False, offsets=False),
    "ProgressiveBackboneEncoder": Design(pyramid=False, offsets=True),
}


class Head(nn.Module):
    """A map to one row (map2style of pSp): convolutions of stride 2 down to one pixel, then a linear layer."""

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
    """Images to rows of width C. A head of more convolutions reads a finer map of the pyramid: that gives its level."""

    def __init__(self, trunk: Trunk, design: Design, width: int, depths: list[int]) -> None:
        super().__init__()
        self.trunk, self.design = trunk, design
        self.levels = [depth - depths[0] for depth in depths]
        self.side = trunk.reduction * 2 ** depths[0]  # of the training images
        deepest = trunk.widths[-1]
        self.styles = nn.ModuleList(Head(deepest, width, depth) for depth in depths)
        if design.pyramid:
            self.latlayer1 = nn.Conv2d(trunk.widths[-2], deepest, 1)
            self.latlayer2 = nn.Conv2d(trunk.widths[-3], deepest, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3 or 6, H, W] in -1..1 -> [N, L, C], to be added to the mean of w or to the latent so far."""
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
    """An encoder with the generator it was trained for, frozen.

    Args:
        kind: "psp", "e4e", "restyle-psp" or "restyle-e4e".
        start: [L, C], the latent that the rows of the network are added to.
        wide: whether the network reads images of 4:3, as for cars.
        source: sha256 of the file.
    """

    start: Tensor

    def __init__(
        self, kind: str, net: StyleNet, decoder: Generator, start: Tensor, wide: bool = False, source: str | None = None
    ) -> None:
        super().__init__()
        self.kind, self.side, self.wide, self.source = kind, net.side, wide, source
        self.net, self.decoder = net.requires_grad_(False), decoder.requires_grad_(False)
        self.register_buffer("start", start)
        self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: batch statistics would make a latent depend on its batch."""
        return super().train(False)

    @property
    def iterative(self) -> bool:
        """Whether more passes improve the result (ReStyle)."""
        return self.net.trunk.channels == 6

    def encode(
        self,
        images: Tensor,
        iterations: int = 5,
        generator: Generator | None = None,
        batch: int = 4,
        on_pass: Callable[[int, int], None] | None = None,
    ) -> Latents:
        """Encode images [N, 3, H, W] in -1..1, aligned as in training; the middle square is used, or 4:3 for cars.

        Args:
            iterations: passes of a ReStyle encoder; others always take one.
            generator: checked to have the decoder's mapping network.
            batch: images at a time; halved when GPU memory runs out.
            on_pass: called with the number of finished and of all passes of single images; may raise to stop.

        Raises:
            ValueError: for a generator with another mapping network or number of rows.
        """
        if iterations < 1 or batch < 1:
            raise ValueError(f"Got {iterations} iterations and batch {batch}, expected at least 1 of each.")
        target = self.decoder if generator is None else generator
        _check_same_mapping(self.decoder, target)
        prepared = self._prepare(images)
        passes = iterations if self.iterative else 1
        batcher = MicroBatcher(min(batch, len(prepared)), "Close other programs on the GPU, or encode on the CPU.")
        parts: list[Tensor] = []
        done = 0
        while done < len(prepared):
            parts.append(batcher.run(self._encode_part, prepared, passes, on_pass, done))
            done += len(parts[-1])
        return Latents(torch.cat(parts), "const", target.space())

    @torch.no_grad()
    def _encode_part(
        self, images: Tensor, passes: int, on_pass: Callable[[int, int], None] | None, first: int, size: int
    ) -> Tensor:
        """Prepared images [N, 3, h, w] -> latents [size, L, C] of those from `first` on (ReStyle, section 3.2)."""
        part = images[first : first + size].to(self.start.device)
        ws = self.start.expand(len(part), -1, -1)
        for index in range(passes):
            drawn = [self._draw(ws, same=index == 0)] if self.iterative else []
            ws = ws + self.net(torch.cat([part, *drawn], dim=1))
            if on_pass is not None:
                on_pass(first * passes + (index + 1) * len(part), passes * len(images))
        return ws.cpu()

    def _draw(self, ws: Tensor, same: bool) -> Tensor:
        """The decoder's images at the size of the network. same: all latents are equal, so draw only one."""
        images = self.decoder.synthesize(ws[:1] if same else ws, "const").expand(len(ws), -1, -1, -1)
        return self._crop(F.interpolate(images, size=(self.side, self.side), mode="area"))

    def _prepare(self, images: Tensor) -> Tensor:
        if self.wide and images.ndim == 4 and images.shape[3] * 3 == images.shape[2] * 4:
            above = images.shape[2] // 6
            below = images.shape[3] - images.shape[2] - above
            images = F.pad(images, (0, 0, above, below), mode="replicate")
        return self._crop(square(images, self.side))

    def _crop(self, images: Tensor) -> Tensor:
        """Cut the bands above and below that generators of cars draw: rows 32..224 of 256 remain."""
        return images[:, :, self.side // 8 : self.side * 7 // 8] if self.wide else images


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """Load a pSp, e4e or ReStyle checkpoint of the authors' programs, with an IR, IR-SE or ResNet trunk.

    Raises CheckpointError for files that are missing, damaged or of another kind.
    """
    raw = read_checkpoint(path)
    try:
        encoder = _build(raw)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return encoder.to(device)


def _build(raw: RawCheckpoint) -> Encoder:
    tensors = _under(raw.tensors, "state_dict.") or raw.tensors
    encoder_tensors, decoder_tensors = _under(tensors, "encoder."), _under(tensors, "decoder.")
    if not any(name.startswith("body.") for name in encoder_tensors):
        raise UnsupportedCheckpointError(
            f"not an encoder; it looks like {describe(raw, 'as an encoder')}. Expected a pSp, e4e or ReStyle "
            "checkpoint, a .pt with state_dict, opts and latent_avg."
        )
    if not decoder_tensors:
        raise CheckpointError("the encoder comes without its decoder. Download the authors' complete file.")
    options = _options(raw.hints)
    design = _design(options)
    decoder = _build_decoder(raw, decoder_tensors)
    net = _build_net(encoder_tensors, design)
    if len(net.styles) != decoder.num_ws or shape(encoder_tensors, "styles.0.linear.weight", 2)[0] != decoder.w_dim:
        reads = f"its decoder reads {decoder.num_ws} of width {decoder.w_dim}"
        raise CheckpointError(f"the encoder has {len(net.styles)} rows, but {reads}. Download the complete file.")
    iterative = net.trunk.channels == 6
    start = torch.zeros(decoder.num_ws, decoder.w_dim)
    if iterative or options.get("start_from_latent_avg", True):  # true for all published encoders
        start = _mean(raw.tensors, decoder)
    family = "e4e" if design.offsets else "psp"
    wide = "cars" in str(options.get("dataset_type", ""))
    return Encoder(f"restyle-{family}" if iterative else family, net, decoder, start, wide, raw.sha256)


def _design(options: Mapping[str, Any]) -> Design:
    kind = options.get("encoder_type")
    design = _DESIGNS.get(str(kind).removeprefix("ResNet"))
    if design is None:
        known = f"{', '.join(_DESIGNS)}, all but Encoder4Editing also with the prefix ResNet"
        raise UnsupportedCheckpointError(f"its options name the encoder type {kind!r}; known are {known}.")
    return design


def _build_decoder(raw: RawCheckpoint, tensors: dict[str, Tensor]) -> Generator:
    """The generator in the file, with the encoder's mean of w, or an estimated one where the file has none."""
    if (mean := raw.tensors.get("latent_avg")) is not None:
        tensors = tensors | {"latent_avg": mean[0] if mean.ndim == 2 else mean}  # one row, or L equal ones
    inner = RawCheckpoint(tensors, {}, raw.container, raw.sha256)
    layout = next((layout for layout in LAYOUTS if "" in layout.prefixes(inner)), None)
    if layout is None:
        raise UnsupportedCheckpointError(f"its decoder is no StyleGAN2; its tensors begin with {sorted(tensors)[:3]}.")
    try:
        decoder = assemble(layout.read(inner, ""))
    except ValueError as error:
        raise CheckpointError(f"its decoder, read as {layout.name}: {error}") from error
    decoder.source = raw.sha256
    return decoder


def _mean(tensors: Mapping[str, Tensor], decoder: Generator) -> Tensor:
    """The mean of w that the encoder starts from, stored once or per row, as [L, C]."""
    mean = tensors.get("latent_avg", decoder.w_avg).float()
    rows, width = decoder.num_ws, decoder.w_dim
    if mean.shape not in ((width,), (1, width), (rows, width)):
        expected = f"[{width}], [1, {width}] or [{rows}, {width}]"
        raise CheckpointError(f"latent_avg has shape {list(mean.shape)}, expected {expected}. Download the file again.")
    return mean.expand(rows, -1).clone()


def _build_net(state: Mapping[str, Tensor], design: Design) -> StyleNet:
    depths: list[int] = []
    while f"styles.{len(depths)}.linear.weight" in state and len(depths) <= _MOST_ROWS:
        head = f"styles.{len(depths)}.convs."
        depths.append(sum(name.startswith(head) and name.endswith("weight") for name in state))
    width = shape(state, "styles.0.linear.weight", 2)[0]
    with torch.device("meta"):
        trunk = trunk_of(state)
        if trunk.channels not in (3, 6):
            got = f"{trunk.channels} channels: sketches or label maps"
            raise UnsupportedCheckpointError(f"the encoder reads {got}. Use one for photographs, with 3 or 6.")
        levels = {0, 1, 2} if design.pyramid else {0}
        fits = {depth - depths[0] for depth in depths} <= levels and len(trunk.widths) >= len(levels)
        if not fits or not 1 <= depths[0] <= _MOST_CONVS:
            raise CheckpointError(
                f"heads of {depths} convolutions on {len(trunk.widths)} stages do not fit the encoder's type. "
                "The file is damaged, or an unsupported variant."
            )
        net = StyleNet(trunk, design, width, depths)
    # Other parts of the encoder are unused by this type; the authors' loaders skip them as well.
    heads = ("styles", "latlayer1", "latlayer2") if design.pyramid else ("styles",)
    own = {name: value for name, value in state.items() if name.partition(".")[0] in heads}
    own |= {f"trunk.{name}": value for name, value in state.items() if name.partition(".")[0] in trunk.layers}
    load_weights(net, own)
    return net


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _options(hints: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of the training, a dict in some files and a Namespace in others."""
    options = hints.get("opts")
    return options if isinstance(options, Mapping) else _under(hints, "opts.")


def _check_same_mapping(decoder: Generator, generator: Generator) -> None:
    """Compare the weights only, without the mean of w: see `Encoder.encode`."""
    ours, theirs = dict(decoder.mapping.named_parameters()), dict(generator.mapping.named_parameters())
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)
    if not same or (decoder.num_ws, decoder.w_dim) != (generator.num_ws, generator.w_dim):
        raise ValueError(
            "Got a generator whose mapping network is not the decoder's, expected the generator that the encoder was "
            "trained for, or one adapted from it. Omit it to use encoder.decoder."
        )
