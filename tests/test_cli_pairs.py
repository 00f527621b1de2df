"""`sample --separate` and `adapt --pairs`: a folder of latents and edited images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nada_core import load_generator, load_latents, read_provenance, save_image
from nada_core.cli.main import main
from nada_core.portraits import render
from nada_core.portraits.content import Content

QUICK = ("--steps", "2", "--keep-every", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve latents, and their images edited to jokers."""
    monkeypatch.chdir(tmp_path)
    words = ("sample", "portraits", "--seeds", "0-11", "--psi", "1", "--out", "grid.png", "--separate", "pairs")
    assert main(words) == 0
    latents = load_latents("pairs/latents.safetensors", load_generator("portraits"))
    for index, image in enumerate(render(Content.load()(latents.ws), "joker").split(1)):
        save_image(image, f"pairs/seed{index:04d}.png")
    return tmp_path / "pairs"


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["adapt", "portraits", *QUICK, "--out", "out", *words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and not Path("out/pairs.safetensors").exists()
    return message


def test_adapt_pairs_trains_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "portraits", "--pairs", str(folder), *QUICK, "--out", "out", "--pairs-edges", "2"]) == 0
    assert "12 pairs: 9 trained, 3 held out, 0 rejected." in capsys.readouterr().out
    record = read_provenance("out/pairs.safetensors")
    assert (record["pairs"]["edges"], record["config"]["steps"], record["config"]["pool"]) == (2.0, 2, 0)
    assert "prompts" not in record


def test_adapt_pairs_with_a_text(folder: Path) -> None:
    words = ("--target", "joker", "--snapshot-every", "1", "--out", "o")
    assert main(["adapt", "portraits", "--pairs", str(folder), *QUICK, *words]) == 0
    record = read_provenance("o/joker.safetensors")
    assert record["prompts"]["target"] == "joker" and record["pairs"]["count"] == 12
    assert len(list(Path("o/joker-snapshots").iterdir())) == 2


def test_bad_folders_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 images" in error(capsys, "--pairs", "nowhere")
    assert "--judge portraits" in error(capsys, "--pairs", str(folder), "--judge", "portraits")
    assert "--pairs-l1 is -1" in error(capsys, "--pairs", str(folder), "--pairs-l1=-1")
    assert "--target, --image and --pairs" in error(capsys)
    (folder / "seed0003.png").unlink()
    assert "11 images and 12 latents" in error(capsys, "--pairs", str(folder))
    save_image(torch.zeros(1, 3, 32, 32), folder / "seed0003.png")
    assert "32 x 32 (seed0003.png)" in error(capsys, "--pairs", str(folder))


def test_images_are_read_in_natural_order(folder: Path) -> None:
    for path in folder.glob("seed*.png"):
        path.rename(folder / f"img{int(path.stem[4:])}.png")
    assert main(["adapt", "portraits", "--pairs", str(folder), *QUICK, "--out", "out"]) == 0
