"""Sampling, rendering, mixing, interpolating, saving and loading of latents."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tiny import generator, rng

from nada_core.io.checkpoint_file import read_checkpoint
from nada_core.io.errors import CheckpointError, UnsafeCheckpointError
from nada_core.io.metadata import write_safetensors
from nada_core.latents.sampling import Latents, interpolate, load_latents, mix, render, sample, save_latents


def test_latent_of_a_seed_is_independent_of_the_batch() -> None:
    made = generator()
    together = sample(made, [3, 7, 11])
    assert len(together) == 3 and together.ws.shape == (3, 6, 5) and together.space == made.space()
    for index, seed in enumerate((3, 7, 11)):
        torch.testing.assert_close(sample(made, [seed]).ws[0], together.ws[index])
    torch.testing.assert_close(sample(made, range(12)).ws[[3, 7, 11]], together.ws)
    assert (together.ws[0] - together.ws[1]).abs().max() > 0.01


def test_truncation_pulls_towards_the_mean() -> None:
    made = generator()
    whole, half, none = (sample(made, [1, 2], psi).ws for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, made.w_avg.expand_as(none))
    torch.testing.assert_close(half, (whole + none) / 2)
    cut = sample(made, [1, 2], 0.5, cutoff=2).ws
    assert torch.equal(cut[:, :2], half[:, :2]) and torch.equal(cut[:, 2:], whole[:, 2:])
    assert torch.equal(sample(made, [1]).ws, sample(made, [1], 0.7).ws)


def test_sampling_keeps_the_global_random_state() -> None:
    before = torch.get_rng_state()
    render(generator(), sample(generator(), [1]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_images_are_independent_of_the_batch_size(batch: int) -> None:
    made = generator()
    latents = sample(made, range(5))
    pictures = render(made, latents, batch)
    assert pictures.shape == (5, 3, 16, 16) and not pictures.requires_grad
    torch.testing.assert_close(pictures, made.synthesize(latents.ws).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_noise_maps_belong_to_the_latents(batch: int) -> None:
    made = generator()
    latents = sample(made, range(5))
    shared = [layer[0, 0] for layer in made.draw_noise(1, rng(1))]
    own = made.draw_noise(5, rng(2))
    for noise in ("none", tuple(shared), tuple(own)):
        pictures = render(made, replace(latents, noise=noise), batch)
        torch.testing.assert_close(pictures, made.synthesize(latents.ws, noise).detach(), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
        assert (pictures - render(made, latents)).abs().max() > 0.01


def test_latents_fit_generators_with_the_same_mapping_only() -> None:
    made, adapted, unrelated = generator(), generator(), generator(rng=rng(5))
    with torch.no_grad():
        adapted.get_parameter("synthesis.b8.conv0.weight").add_(1.0)
    latents = sample(made, [1])
    assert (render(made, latents) - render(adapted, latents)).abs().max() > 0.01
    with pytest.raises(ValueError, match=f"another generator .space {made.space()[:12]}.*{unrelated.space()[:12]}"):
        render(unrelated, latents)
    torch.testing.assert_close(  # a latent that does not say where it comes from is taken at its word
        render(unrelated, Latents(latents.ws)), unrelated.synthesize(latents.ws).detach(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"expected \[N, 6, 5\]"):
        render(made, Latents(latents.ws[:, :3]))


@pytest.mark.parametrize(
    ("count", "noise", "message"),
    [
        (2, "random", r"Got noise 'random'.*draw_noise"),
        (2, "loud", "Got noise 'loud'"),
        (2, (torch.zeros(3, 1, 4, 4),), r"Noise map 0 has shape \[3, 1, 4, 4\]"),
        (2, (torch.zeros(4),), "Noise map 0"),
        (0, "const", "at least one latent"),
    ],
)
def test_invalid_latents_are_refused(count: int, noise: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latents(torch.zeros(count, 6, 5), noise)


def test_noise_maps_of_a_generator_are_accepted() -> None:
    made = generator()
    latents = sample(made, range(3))
    pictures = render(made, replace(latents, noise=made.draw_noise(3, rng(2))), batch=2)
    torch.testing.assert_close(
        pictures, made.synthesize(latents.ws, made.draw_noise(3, rng(2))).detach(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="Got batch 0"):
        render(made, latents, 0)


def test_labels() -> None:
    made = generator(c_dim=3)
    first, second = (sample(made, [1, 2], label=label).ws for label in (0, 2))
    assert (first - second).abs().max() > 0.01
    z = torch.stack([torch.randn(6, generator=rng(seed)) for seed in (1, 2)])
    torch.testing.assert_close(second, made.map(z, torch.eye(3)[2].expand(2, 3), 0.7).detach())


@pytest.mark.parametrize(
    ("c_dim", "arguments", "message"),
    [
        (0, {"seeds": []}, "at least one"),
        (0, {"seeds": [1, -1]}, "seed -1"),
        (0, {"seeds": [0, 2**32]}, f"seed {2**32}"),
        (0, {"seeds": [1], "label": 0}, "has no classes"),
        (3, {"seeds": [1]}, "label None.*from 0 to 2"),
        (3, {"seeds": [1], "label": 3}, "label 3"),
        (3, {"seeds": [1], "label": -1}, "label -1"),
        (0, {"seeds": [1], "cutoff": 7}, "cutoff is 7"),
        (0, {"seeds": [1], "psi": float("nan")}, "psi nan"),
    ],
)
def test_unsuitable_inputs_are_refused(c_dim: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(generator(c_dim=c_dim), **arguments)


@pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, 2), slice(-2, None), slice(None, None, -1), 3, -1])
def test_slice_of_latents_renders_that_slice_of_images(part: int | slice) -> None:
    made = generator()
    latents = sample(made, range(5))
    rows = list(range(5))[part] if isinstance(part, slice) else [part]
    for noise in (
        "none",
        made.draw_noise(1, rng(1)),
        [m[0, 0] for m in made.draw_noise(1, rng(1))],
        made.draw_noise(5, rng(2)),
    ):
        whole = replace(latents, noise=noise)
        some = whole[part]
        assert torch.equal(some.ws, latents.ws[rows]) and some.space == made.space()
        torch.testing.assert_close(render(made, some), render(made, whole)[rows], rtol=1e-4, atol=1e-5)
    assert latents[0].ws.shape == (1, 6, 5) and [len(one) for one in latents] == [1] * 5


def test_slices_out_of_range_are_refused() -> None:
    latents = sample(generator(), range(3))
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            latents[beyond]
    with pytest.raises(ValueError, match=r"slice\(3, None, None\) of 3 latents, which is empty"):
        latents[3:]


def test_mixing_takes_rows_and_blends_them() -> None:
    made = generator()
    first, second = sample(made, [1, 2]), sample(made, [3, 4])
    before = first.ws.clone(), second.ws.clone()
    styled = mix(first, second, rows=(2, 4))
    assert torch.equal(styled.ws[:, 2:4], second.ws[:, 2:4]) and styled.space == made.space()
    assert torch.equal(styled.ws[:, :2], first.ws[:, :2]) and torch.equal(styled.ws[:, 4:], first.ws[:, 4:])
    assert torch.equal(mix(first, second).ws, second.ws) and torch.equal(mix(first, second, 0.0).ws, first.ws)
    torch.testing.assert_close(mix(first, second, 0.25).ws, 0.75 * first.ws + 0.25 * second.ws)
    torch.testing.assert_close(mix(first, second, -1.0, (0, 1)).ws[:, 0], (2 * first.ws - second.ws)[:, 0])
    assert torch.equal(mix(first, second, rows=(0, 6)).ws, second.ws)
    assert torch.equal(first.ws, before[0]) and torch.equal(second.ws, before[1])


def test_mixing_broadcasts_a_single_latent() -> None:
    made = generator()
    one, many = sample(made, [1]), sample(made, [3, 4, 5])
    assert torch.equal(mix(one, many, rows=(0, 3)).ws[:, :3], many.ws[:, :3])
    assert torch.equal(mix(one, many, rows=(0, 3)).ws[:, 3:], one.ws.expand(3, -1, -1)[:, 3:])
    assert torch.equal(mix(many, one, rows=(0, 3)).ws[:, :3], one.ws.expand(3, -1, -1)[:, :3])
    own, other = made.draw_noise(1, rng(1)), made.draw_noise(3, rng(2))
    mixed = mix(replace(one, noise=own), replace(many, noise=other), 0.5)
    torch.testing.assert_close(render(made, mixed), made.synthesize(mixed.ws, own).detach(), rtol=1e-4, atol=1e-5)
    mixed = mix(replace(many, noise=other), replace(one, noise="none"), 0.5)
    torch.testing.assert_close(render(made, mixed), made.synthesize(mixed.ws, other).detach(), rtol=1e-4, atol=1e-5)
    assert mix(Latents(one.ws), many).space == mix(many, Latents(one.ws)).space == made.space()


@pytest.mark.parametrize(
    ("second", "arguments", "message"),
    [
        (Latents(torch.zeros(2, 6, 5), space="b"), {}, "a and b"),
        (Latents(torch.zeros(2, 8, 5), space="a"), {}, r"\[6, 5\] and \[8, 5\]"),
        (Latents(torch.zeros(3, 6, 5)), {}, "Got 2 and 3 latents"),
        (None, {"rows": (2, 2)}, "Got rows 2 to 2"),
        (None, {"rows": (-1, 2)}, "Got rows -1 to 2"),
        (None, {"rows": (0, 7)}, "0 <= first < last <= 6"),
        (None, {"amount": float("inf")}, "Got amount inf"),
        (None, {"amount": float("nan")}, "Got amount nan"),
    ],
)
def test_mixing_refuses_unsuitable_latents(second: Latents | None, arguments: dict[str, Any], message: str) -> None:
    first = Latents(torch.zeros(2, 6, 5), space="a")
    with pytest.raises(ValueError, match=message):
        mix(first, second or first, **arguments)


def test_interpolation_is_linear_between_key_frames() -> None:
    made = generator()
    keys = sample(made, [1, 2, 3])
    walk, ring = interpolate(keys, 4), interpolate(keys, 4, loop=True)
    assert walk.ws.shape == (9, 6, 5) and ring.ws.shape == (12, 6, 5) and walk.space == ring.space == made.space()
    assert torch.equal(walk.ws[::4], keys.ws) and torch.equal(ring.ws[:9], walk.ws)
    torch.testing.assert_close(walk.ws[1], 0.75 * keys.ws[0] + 0.25 * keys.ws[1])
    torch.testing.assert_close(ring.ws[11], 0.25 * keys.ws[2] + 0.75 * keys.ws[0])
    assert torch.equal(interpolate(keys, 1).ws, keys.ws) and torch.equal(interpolate(keys, 1, loop=True).ws, keys.ws)
    shared = made.draw_noise(1, rng(1))
    assert walk.noise == "const" and interpolate(replace(keys, noise="none"), 2).noise == "none"
    for noise in (shared, [m[0, 0] for m in shared]):
        for before, given in zip(interpolate(replace(keys, noise=noise), 2).noise, noise, strict=True):
            assert torch.equal(torch.as_tensor(before), given)


def test_interpolated_noise_keeps_its_variance() -> None:
    maps = torch.randn(3, 1, 128, 128, generator=rng())
    walk = interpolate(Latents(torch.zeros(3, 6, 5), [maps, maps[:1]]), 4, loop=True)
    blended, shared = walk.noise
    assert isinstance(blended, torch.Tensor) and blended.shape == (12, 1, 128, 128)
    assert torch.equal(torch.as_tensor(shared), maps[:1])
    torch.testing.assert_close(blended.flatten(1).std(1), torch.ones(12), rtol=0.03, atol=0)
    assert torch.equal(blended[::4], maps)
    torch.testing.assert_close(blended[6], (maps[1] + maps[2]) / 2**0.5)
    torch.testing.assert_close(blended[11], (0.25 * maps[2] + 0.75 * maps[0]) / 0.625**0.5)


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (1, {"frames": 4}, "latents: 1"),
        (2, {"frames": 0}, "per latent: 0"),
        (2, {"frames": -3}, "per latent: -3"),
        (2, {"frames": 10_000}, "10001 in all"),
        (3, {"frames": 3334, "loop": True}, "10002 in all"),
    ],
)
def test_interpolation_refuses_too_few_latents_or_frames(count: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(Latents(torch.zeros(count, 2, 1)), **arguments)
    assert len(interpolate(Latents(torch.zeros(2, 2, 1)), 9_999)) == 10_000


def test_progress_is_reported_after_every_batch_and_can_stop() -> None:
    made = generator()
    progress: list[tuple[int, int]] = []
    render(made, sample(made, range(5)), 2, lambda done, total: progress.append((done, total)))
    assert progress == [(2, 5), (4, 5), (5, 5)]

    def stop(done: int, total: int) -> None:
        progress.append((done, total))
        raise KeyboardInterrupt

    progress.clear()
    with pytest.raises(KeyboardInterrupt):
        render(made, sample(made, range(5)), 2, stop)
    assert progress == [(2, 5)]


def cramped(made: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make a generator run out of memory above `most` images; returns the list of requested batch sizes."""
    sizes: list[int] = []
    activations: list[weakref.ref[torch.Tensor]] = []
    roomy = made.synthesize

    def synthesize(ws: torch.Tensor, *arguments: Any) -> torch.Tensor:
        assert all(alive() is None for alive in activations), "a failed batch still holds its memory"
        sizes.append(len(ws))
        if len(ws) > most:
            activation = torch.zeros(len(ws))
            activations.append(weakref.ref(activation))
            raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")
        return roomy(ws, *arguments)

    monkeypatch.setattr(made, "synthesize", synthesize)
    return sizes


def test_batch_is_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator()
    latents = replace(sample(made, range(7)), noise=made.draw_noise(7, rng(2)))
    expected = render(made, latents, 8)
    sizes = cramped(made, 2, monkeypatch)
    progress: list[tuple[int, int]] = []
    pictures = render(made, latents, 8, lambda done, total: progress.append((done, total)))
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [7, 4, 2, 2, 2, 1] and progress == [(2, 7), (4, 7), (6, 7), (7, 7)]
    sizes.clear()
    torch.testing.assert_close(render(made, latents[:5], 4), expected[:5], rtol=1e-4, atol=1e-5)
    assert sizes == [4, 2, 2, 1]  # continues with the smaller batch


def test_out_of_memory_error_for_one_image_names_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator()
    latents = sample(made, range(2))
    sizes = cramped(made, 0, monkeypatch)
    progress = "one latent at a time.*20 GiB.*16 pixels on the CPU"
    with pytest.raises(torch.cuda.OutOfMemoryError, match=progress) as caught:
        render(made, latents)
    assert sizes == [2, 1] and caught.value.__context__ is None
    monkeypatch.setattr(made, "synthesize", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="^something else$"):
        render(made, latents)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_latents_file_round_trip_is_exact(tmp_path: Path) -> None:
    made = generator()
    path = tmp_path / "people.safetensors"
    for noise in ("const", "none", made.draw_noise(3, rng(1)), [m[0, 0] for m in made.draw_noise(1, rng(1))]):
        latents = replace(sample(made, range(3)), noise=noise)
        save_latents(latents, path, {"photo": "anna.jpg"})
        for back in (load_latents(path), load_latents(path, made)):
            assert torch.equal(back.ws, latents.ws) and back.space == made.space()
            if isinstance(noise, str):
                assert back.noise == noise
            else:
                assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(back.noise, noise, strict=True))
    assert read_checkpoint(path).hints["provenance"] == '{"photo": "anna.jpg"}'


def test_unsuitable_latents_files_are_refused(tmp_path: Path) -> None:
    made, path = generator(), tmp_path / "x"
    save_latents(sample(made, [1]), path)
    with pytest.raises(ValueError, match="another generator"):
        load_latents(path, generator(rng=rng(5)))
    save_latents(Latents(torch.zeros(1, 3, 5)), path)  # without a space any generator of this size is accepted
    with pytest.raises(ValueError, match=r"have \[3, 5\] rows and columns, expected \[6, 5\]"):
        load_latents(path, made)
    path.unlink()
    with pytest.raises(ValueError, match="nothing was written"):
        save_latents(Latents(torch.full((1, 6, 5), torch.nan)), path)
    assert not path.exists()
    whole = {"kind": "nada_latents", "version": "1", "space": "", "noise": "const"}
    for tensors, hints, message in (
        ({"ws": torch.zeros(6, 5)}, whole, "incomplete"),
        ({"a": torch.zeros(1)}, whole, "incomplete"),
        ({"ws": torch.zeros(1, 6, 5)}, whole | {"version": "2"}, "version 2"),
    ):
        write_safetensors(path, tensors, hints)
        with pytest.raises(CheckpointError, match=message):
            load_latents(path)


def test_foreign_latents_are_loaded(tmp_path: Path) -> None:
    made = generator()
    ws = sample(made, range(3)).ws
    numpy.savez(tmp_path / "projected_w.npz", w=ws[:1].numpy())
    numpy.save(tmp_path / "many.npy", ws.numpy())
    torch.save(ws.half(), tmp_path / "encoded.pt")
    torch.save({"latents": ws, "steps": torch.tensor(3)}, tmp_path / "named.pt")
    torch.save(ws[0], tmp_path / "single.pt")
    write_safetensors(tmp_path / "other.safetensors", {"anything": ws[:, 0]}, {})
    torch.save({"w": ws[0, 0]}, tmp_path / "one_w.pt")
    expected = {
        "projected_w.npz": ws[:1],
        "many.npy": ws,
        "encoded.pt": ws.half().float(),
        "named.pt": ws,
        "single.pt": ws[:1],
        "other.safetensors": ws,
        "one_w.pt": ws[:1],
    }
    for name, wanted in expected.items():
        loaded = load_latents(tmp_path / name, made)
        assert torch.equal(loaded.ws, wanted) and loaded.noise == "const" and loaded.space == made.space(), name
        with pytest.raises(ValueError, match="also needs its generator"):
            load_latents(tmp_path / name)


def test_files_of_the_rosinality_projector_are_loaded(tmp_path: Path) -> None:
    made = generator()
    latents = replace(sample(made, range(2)), noise=made.draw_noise(2, rng(1)))
    saved = {
        f"{index}.png": {"img": torch.zeros(3, 16, 16), "latent": one.ws[0], "noise": list(one.noise)}
        for index, one in enumerate(latents)
    }
    torch.save(saved, tmp_path / "x.pt")
    torch.testing.assert_close(render(made, load_latents(tmp_path / "x.pt", made)), render(made, latents))
    whole = saved["1.png"]["noise"]
    for broken in ([torch.full((1, 1, 4, 4), torch.inf), *whole[1:]], whole[:-1], [whole[1], *whole[1:]], None):
        saved["1.png"]["noise"] = broken
        torch.save(saved, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="5 finite noise maps"):
            load_latents(tmp_path / "x.pt", made)
    del saved["1.png"]["noise"]  # only one of the two has maps
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="5 finite noise maps"):
        load_latents(tmp_path / "x.pt", made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2, 4, 5), r"shape \[2, 4, 5\], expected \[N, 6, 5\]"),
        (torch.zeros(3, 8), r"\[N, 5\] for this"),
        (torch.zeros(7), r"shape \[7\]"),
        (torch.zeros(0, 6, 5), r"shape \[0, 6, 5\]"),
        (torch.zeros(()), r"shape \[\]"),
        ({"w": torch.zeros(1, 5), "ws": torch.zeros(1, 6, 5)}, r"found 2 \(w, ws\)"),
        ({"a.latent": torch.zeros(6, 5), "b.latent": torch.zeros(5)}, "found 2"),
        ({"note": "none"}, "found none"),
        ({"a": torch.zeros(5), "b": torch.zeros(5)}, r"none among \['a', 'b'\]"),
        (torch.full((1, 5), torch.nan), "NaN"),
        (torch.zeros(1, 6, 5, dtype=torch.int64), "found none"),
    ],
)
def test_foreign_files_of_other_generators_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_latents(tmp_path / "x.pt", generator())


def test_latents_of_restyle_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    """ReStyle saves a dict of lists inside an array of objects, which only unpickling could open."""
    made = generator()
    latent = sample(made, [3]).ws[0].numpy()
    path = tmp_path / "latents.npy"
    numpy.save(path, {"NAME.jpg": [latent * 0, latent]})  # type: ignore[arg-type]
    with pytest.raises(UnsafeCheckpointError, match="ReStyle") as caught:
        load_latents(path, made)
    _, _, command = str(caught.value).partition("numpy.save('one.npy', ")
    assert command.startswith("numpy.load('latents.npy', allow_pickle=True).item()['NAME.jpg'][-1])")
    numpy.save(tmp_path / "one.npy", numpy.load(path, allow_pickle=True).item()["NAME.jpg"][-1])
    assert torch.equal(load_latents(tmp_path / "one.npy", made).ws, sample(made, [3]).ws)
