"""Steps on a fake accelerator; `test_devices.py` runs this file.

The device is a private backend of torch, with fake tensors: they have shapes and devices, but no values. Reading a
value raises, and so does an operation on tensors of two devices. `NoWaiting` also refuses what works on a GPU, but
waits for it: copies to the CPU, and copies and indices from the CPU that are not `non_blocking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nada_core import load_guide
from nada_core.adaptation import batch as batches
from nada_core.adaptation import objective as objectives
from nada_core.adaptation.batch import draw_batch
from nada_core.adaptation.config import AdaptConfig, LayerChoice, PairsConfig
from nada_core.adaptation.layer_selection import SelectedLayers, row_movement, selectable_layers, trained_names
from nada_core.adaptation.objective import Objective
from nada_core.adaptation.pairs import Pairs
from nada_core.adaptation.train_state import TrainState
from nada_core.adaptation.weight_regularizer import WeightRegularizer
from nada_core.guidance.augment import shared_augmentation
from nada_core.guidance.reconstruction import ReconstructionLoss
from nada_core.guidance.targets import ClipTarget
from nada_core.latents import inversion, pivotal_tuning, text_edit
from nada_core.latents.sampling import Latents, synthesize
from nada_core.models.arcface import Identity, SmallFace
from nada_core.runtime.lending import copy_to
from nada_core.runtime.precision import arithmetic


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


backend_registration._setup_privateuseone_for_python_backend("fakegpu", Backend())
DEVICE = torch.device("fakegpu", 0)
# Made with values, before any fake tensor.
GENERATOR, GUIDE, FACE = tiny.generator(), tiny.guide(), Identity("tiny", SmallFace(8, 4))
PORTRAITS = [load_guide("portraits"), load_guide("portraits-vit")]
for guide in PORTRAITS:
    guide._untrained = None  # fake tensors cannot be copied together with others


class FakeMode(FakeTensorMode):
    """With a real GPU, or since torch 2.14, fake tensors with known values would be copied to the device for real."""

    avoid_device_init = True


class WaitsError(AssertionError):
    """An operation that waits for the device, or that a device would refuse."""


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = args[name == "copy_"].device.type
            target = (args[0] if name == "copy_" else torch.empty(0, device=kwargs.get("device", source))).device.type
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if source != target and (target == "cpu" or not asynchronous):
                raise WaitsError(f"{func} from {source} to {target}")
        if name.startswith("index") and args[0].device.type != "cpu":
            indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
            if any(index.device.type == "cpu" or index.dtype == torch.bool for index in indices):
                raise WaitsError(f"{func} with indices on the CPU, or with a mask")
        return func(*args, **kwargs)


class DeviceGenerator(torch.Generator):
    device = DEVICE


class MatchingGenerators(TorchFunctionMode):
    """Refuses random numbers on one device from a generator on another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rng = (kwargs or {}).get("generator")
        if rng is not None and result.device.type != rng.device.type:
            raise WaitsError(f"{func} on {result.device} with a generator on {rng.device}")
        return result


@contextmanager
def no_waiting() -> Iterator[None]:
    with MatchingGenerators(), NoWaiting():
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that copies networks to the device. Inside, `fetch` counts its calls and returns ones."""
    monkeypatch.setattr(batches, "generator_on", lambda device, rng: DeviceGenerator())
    with FakeMode(allow_non_fake_inputs=True):
        yield lambda *modules: tuple(copy_to(module, DEVICE) for module in modules)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the tensors of every call of `fetch`, which returns ones instead."""
    calls: list[list[int]] = []

    def fetch(*tensors: Tensor) -> list[list[float]]:
        assert {tensor.device.type for tensor in tensors} == {DEVICE.type}
        calls.append([tensor.numel() for tensor in tensors])
        return [[1.0] * tensor.numel() for tensor in tensors]

    for module in (objectives, inversion, pivotal_tuning, text_edit):
        monkeypatch.setattr(module, "fetch", fetch)
    return calls


def target(guide: Any, weight: float = 1.0) -> ClipTarget:
    embedding = torch.ones(1, guide.dim, device=DEVICE)
    return ClipTarget(guide, weight, embedding, embedding)


def is_on_device(*tensors: Tensor) -> bool:
    return {tensor.device for tensor in tensors} == {DEVICE}


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x + torch.ones(3),
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x[torch.zeros(2, dtype=torch.long)],
        lambda x: x[x > 0],
        lambda x: x.masked_scatter(x > 0, x).nonzero(),
        lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
    ],
    ids=["two devices", "item", "to the CPU", "from the CPU", "numbers", "indices", "mask", "nonzero", "generator"],
)
def test_faults_are_noticed(fake: Any, fault: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises((RuntimeError, WaitsError, DataDependentOutputException)), no_waiting():
        fault(x)


STEPS: dict[str, dict[str, Any]] = {
    "views and terms": {
        "views": 2,
        "mirror": True,
        "terms": {"direction": 1.0, "angle": 0.5, "relation": 1.0, "covariance": 1.0},
    },
    "chunks and similarity": {"chunk": 1, "checkpointing": 8, "id": 0.1, "weight_reg": 1.0, "ema": 0.9},
    "low rank": {"layers": LayerChoice(train="low-rank", rank=2)},
    "fp16": {"precision": "fp16"},
}


def one_step(config: AdaptConfig, fake: Any, guides: Any = (GUIDE, GUIDE), pairs: Pairs | None = None) -> None:
    source, student, face, *guides = fake(GENERATOR, GENERATOR, FACE, *guides)
    student.recompute = config.checkpointing
    targets = [target(guide, 0.5) for guide in guides]
    state = TrainState(config, source, student)
    weights, start = state.parameters.weights, state.parameters.start
    regularizer = WeightRegularizer(weights, start, {}, 1.0) if config.weight_reg else None
    objective = Objective(config, source, student, targets, None, face, regularizer, state.scaler)
    state.layers = SelectedLayers(selectable_layers(config.layers, student))
    names = trained_names(config.layers, state.layers.layers)
    with no_waiting():
        batch = draw_batch(source, config, state.rng, 0)
        if pairs is not None:
            batch = replace(pairs, source=source).add_to(batch, state.rng, keep=True)
        result = objective.backward(batch, names, state.parameters.zero_grad, config.chunk or config.batch)
        state.optimizer_step(result)
    assert is_on_device(result.images, *weights.values(), *state.average.values())
    assert state.history[0]["loss"] == 1.0 and set(state.history[0]["terms"]) >= set(config.terms)


@pytest.mark.parametrize("name", STEPS)
def test_training_step(name: str, fake: Any, fetched: list[list[int]]) -> None:
    one_step(AdaptConfig(batch=2, **STEPS[name]), fake)
    assert len(fetched) == 1


def test_training_step_of_the_built_in_clip_models(fake: Any, fetched: list[list[int]]) -> None:
    one_step(AdaptConfig(batch=2), fake, PORTRAITS)
    assert len(fetched) == 1


def test_training_step_with_pairs(fake: Any, fetched: list[list[int]]) -> None:
    config = PairsConfig(locality=0.5, training=AdaptConfig(batch=2, chunk=3))
    images, noise = torch.zeros(4, 3, 16, 16), latents(4).noise
    given = Pairs(source=GENERATOR, ws=latents(4).ws, noise=noise, after=images, config=config)
    pairs = replace(given, before=images, targets=images, rows=(0, 1, 2, 3))
    one_step(config.training, fake, pairs=pairs)
    assert len(fetched) == 1


def test_half_precision_reaches_the_layers(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (generator,) = fake(GENERATOR)
    types = []
    generator.synthesis.b8.register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    with arithmetic("bf16", DEVICE), no_waiting():
        assert generator.synthesize(torch.zeros(1, 6, 5, device=DEVICE)).dtype == torch.float32
    assert types == [torch.bfloat16]


def test_selection(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, guide = fake(GENERATOR, GUIDE)
    z, copies = torch.randn(3, generator.z_dim), []
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self) or self)
    with no_waiting():
        movement = row_movement(LayerChoice(steps=2, chunk=2), generator, [target(guide)], z)
    assert len(copies) == 1 and movement.shape == (generator.num_ws,)


def latents(count: int) -> Latents:
    noise = [torch.zeros(count, 1, size, size) for size in (4, 8, 8, 16, 16)]
    return Latents(torch.zeros(count, GENERATOR.num_ws, GENERATOR.w_dim), noise)


@pytest.mark.parametrize("optimize_noise", [True, False])
def test_inversion_step(optimize_noise: bool, fake: Any, fetched: list[list[int]], monkeypatch: Any) -> None:
    generator, face = fake(GENERATOR, FACE)
    targets = torch.zeros(2, 3, 16, 16, device=DEVICE)
    config = inversion.InvertConfig(space="w+", steps=2, lpips=0.0, optimize_noise=optimize_noise, stop_psnr=30.0)
    loss = ReconstructionLoss(targets, config.weights, None, face)
    noise = [torch.zeros(2, 1, size, size, device=DEVICE) for size in (4, 8, 8, 16, 16)]
    origin = inversion._Origin(torch.zeros(2, 1, generator.w_dim, device=DEVICE), noise, 1.0)
    projection = inversion._Projection(generator, loss, origin, config)
    with no_waiting():
        images = list(projection._run_stage("w+", 2))
    assert is_on_device(*images, projection.ws, projection.loss, *projection.maps) and len(fetched) == 2


@pytest.mark.parametrize("size", [1, 2])
def test_tuning_step(size: int, fake: Any, fetched: list[list[int]]) -> None:
    source, tuned, face = fake(GENERATOR, GENERATOR, FACE)
    targets = torch.zeros(2, 3, 16, 16, device=DEVICE)
    config = pivotal_tuning.TuneConfig(steps=2, lpips=0.0, id=0.1, batch=size, locality=0.5, stop_psnr=30.0)
    tuner = pivotal_tuning._Tuner(source, tuned, targets, latents(2), config, None, face)
    with no_waiting():
        history = tuner.run(None)
    assert len(history) == len(fetched) and is_on_device(*tuned.parameters())


def test_text_edit_step(fake: Any, fetched: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    generator, guide, face = fake(GENERATOR, GUIDE, FACE)
    monkeypatch.setattr(text_edit, "render", lambda *_: torch.zeros(2, 3, 16, 16))
    config = text_edit.TextEditConfig(objective="direction", views=2, id=0.1)
    loss = text_edit._EditLoss(generator, latents(2), [target(guide)], config, face, slice(0, 4))
    offset = torch.zeros(2, 4, generator.w_dim, device=DEVICE)
    augment = shared_augmentation(2, 16, torch.Generator())
    with no_waiting():
        images, gradient, parts = loss.backward(offset, augment, 1)
    assert is_on_device(images, gradient, *parts) and len(parts) == 2


def test_synthesis_of_latents_from_the_cpu(fake: Any) -> None:
    (generator,) = fake(GENERATOR)
    with no_waiting():
        assert is_on_device(synthesize(generator, latents(2)))


def test_copies_are_not_shared(fake: Any) -> None:
    (copied,) = fake(GUIDE)
    assert is_on_device(*copied.parameters(), *copied.buffers())
    assert all(isinstance(p, nn.Parameter) for p in copied.parameters())
    assert {p.device.type for p in GUIDE.parameters()} == {"cpu"}
