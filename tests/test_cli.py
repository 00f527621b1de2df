"""The command line, in process, with a generator and CLIP models of a few hundred numbers."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from fabricated_encoder import content
from safetensors.torch import save_file

import nada_core
from nada_core import (
    AdaptConfig,
    Domain,
    FacePoints,
    load_domain,
    load_encoder,
    load_frames,
    load_generator,
    load_image,
    load_latents,
    portraits,
    read_provenance,
    sample,
    save_domain,
    save_generator,
    save_image,
    save_latents,
)
from nada_core.adaptation.recipes import RECIPES
from nada_core.cli import arguments, file_commands, photo_commands, progress, training_commands, training_flags
from nada_core.cli import main as cli
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.io.images import to_pil
from nada_core.io.metadata import write_torch
from nada_core.latents import face_alignment
from nada_core.latents.inversion import PRESETS
from nada_core.latents.pivotal_tuning import TuneConfig
from nada_core.models.checkpoints import BUILTINS
from nada_core.models.ops import winograd
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.portraits.content import Content

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generators (a and b differ in the synthesis only) and of CLIP models under the built-in names."""
    shelf = tmp_path_factory.mktemp("shelf")
    settings: dict[str, Any] = {"resolution": 16, "z_dim": 6, "w_dim": 6, "mapping_layers": 2, "widths": [8, 7, 4]}
    generator = StyleGAN2(**settings, rng=torch.Generator().manual_seed(0))
    save_generator(generator, shelf / "a.safetensors", {"made": "for a test"})
    save_generator(
        generator, shelf / "portraits.safetensors", {"made": "for a test"}, recommended=portraits.RECOMMENDED
    )
    with torch.no_grad():
        for value in generator.synthesis.parameters():
            value.mul_(1.2)
    save_generator(generator, shelf / "b.safetensors", {})
    save_generator(StyleGAN2(**settings, rng=torch.Generator().manual_seed(1)), shelf / "other.safetensors", {})
    for seed, name in enumerate(("guide", "guide-64", "guide-vit")):
        (shelf / f"{name}.json").write_text(json.dumps(CLIP))
        torch.manual_seed(seed)
        state = {key: value.contiguous() for key, value in open_clip.CLIP(**CLIP).state_dict().items()}
        save_file(state, shelf / f"{name}.safetensors")
    return shelf


@pytest.fixture(autouse=True)
def world(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the built-in names refer to the tiny files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nada_core.models.clip_loading.BUILTIN", shelf)
    monkeypatch.setitem(BUILTINS, "portraits", shelf / "portraits.safetensors")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as leave:  # after printing help
            code = int(leave.code or 0)
        said = capsys.readouterr()
        return code, said.out.replace(os.sep, "/"), said.err.replace(os.sep, "/")

    return run


Run = Callable[..., tuple[int, str, str]]


def files() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file()}


def quick(shelf: Path, *more: object) -> tuple[object, ...]:
    """The words of a run of four steps."""
    return (
        "adapt",
        shelf / "a.safetensors",
        "--guide",
        "portraits",
        "--target",
        "zombie",
        "--out",
        "out",
        "--steps",
        4,
        "--batch",
        2,
        "--lr",
        0.01,
        "--autosave-every",
        2,
        *more,
    )


def stop_at(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Interrupt the training after a step, as Ctrl-C does."""
    adapt = training_commands.adapt

    def interrupted(generator: Any, guides: Any, shift: Any, config: Any, on_step: Any, *rest: Any, **more: Any) -> Any:
        def stopping(step: Any) -> None:
            on_step(step)
            if step.index == index:
                raise KeyboardInterrupt

        return adapt(generator, guides, shift, config, stopping, *rest, **more)

    monkeypatch.setattr(training_commands, "adapt", interrupted)


# ---- readme -------------------------------------------------------------------------------------------------------


ROOT = Path(cli.__file__).parents[2]


def test_readme_names_existing_commands_names_and_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    programs = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert programs
    for node in ast.walk(ast.parse("\n".join(programs))):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "nada_core" and {alias.name for alias in node.names} <= set(nada_core.__all__)
    lines = re.findall(r"python\S* -m nada_core (.+)", text)
    assert lines
    for line in lines:
        assert line.startswith(("--help", *cli.COMMANDS)), line
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), f"README.md links {link}"
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    templates = [path.stem.removesuffix(".app") for path in (ROOT / "workflows").glob("*.json")]
    for name in (*(node["display_name"] for node in nodes.values()), *templates):
        assert re.search(rf"\b{re.escape(name)}(?!\w)", text.replace("\n", " ")), f"README.md does not mention {name}"


def test_cli_page_has_an_example_of_every_command() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    examples = [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m nada_core ")]
    assert {words[0] for words in examples} == set(cli.COMMANDS) == set(re.findall(r"(?m)^## (\S+)$", text))
    for words in examples:
        assert type(arguments.parse(cli.COMMANDS, words)) is cli.COMMANDS[words[0]]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_links_of_a_page_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links {link}"


# ---- help and usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command_has_an_example_that_parses(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and f"python -m nada_core {command}" in out.partition("example:")[2]
    for line in re.findall(r"(?m)^ +python -m nada_core (.+)$", out):
        words = shlex.split(line)
        assert type(arguments.parse(cli.COMMANDS, words)) is cli.COMMANDS[words[0]]
    assert command in run("--help")[1]


def test_module_prints_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nada_core", "--version"],
        cwd=Path(cli.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == nada_core.__version__


def parsed(*words: str) -> Any:
    return arguments.parse(cli.COMMANDS, words)


def test_defaults_are_those_stored_in_the_generators_file(run: Run, shelf: Path) -> None:
    def adapt(*words: str) -> Any:
        return parsed("adapt", *words, "--target", "x", "--out", "y")

    for words in (
        ("portraits",),
        ("--source", "photo", "--steps", "9", "portraits"),
        (str(shelf / "portraits.safetensors"),),
    ):
        assert adapt(*words).config.lr == portraits.RECIPE.lr and adapt(*words).stored_guides == portraits.GUIDES
    for words in (("ffhq.pkl", "--guide", "portraits"), ("--guide", "portraits", str(shelf / "a.safetensors"))):
        assert adapt(*words).config == AdaptConfig() and not adapt(*words).stored_guides
    assert adapt("portraits", "--layers-count", "3").config == replace(
        portraits.RECIPE, layers=replace(portraits.RECIPE.layers, count=3)
    )
    help_of = {name: " ".join(run("adapt", name, "--help")[1].split()) for name in ("portraits", "ffhq.pkl")}
    assert f"(default: {portraits.RECIPE.lr:g})" in help_of["portraits"]
    assert f"(default: {AdaptConfig().lr:g})" in help_of["ffhq.pkl"]


def test_help_is_grouped_and_shows_limits_and_choices(run: Run) -> None:
    text = run("adapt", "portraits", "--help")[1]
    for group in ("positional arguments", "machine options", "training options", "layers options"):
        assert group in text
    text = " ".join(text.replace("│", " ").split())
    assert "--layers-mode {all,adaptive,named}" in text and "from 1 to 100000 (default: 400)" in text
    assert "--recipe {style,creature," in text and "--mirror, --no-mirror" in text and "--terms NAME=X,..." in text


def test_settings_read_from_flags() -> None:
    words = ("--terms", "direction=2,angle=0.5", "--layers-names", "b4.conv1, b8.conv0", "--label", "3")
    words += ("--mirror", "--views", "1")
    config = parsed("adapt", "x.pt", "--out", "o", *words, "--beta1=0.5").config
    assert config.terms == {"direction": 2.0, "angle": 0.5} and config.layers.names == ("b4.conv1", "b8.conv0")
    assert config.mirror and config.label == 3 and config.beta1 == 0.5
    assert not parsed("adapt", "x.pt", "--out", "o", "--no-mirror", "--layers-names", "none").config.layers.names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "build-native"),
        (("adap", "portraits"), "adap"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--steps", "-3"), "--steps is -3"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--steps", "many"), "--steps"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--lr", "nan"), "--lr is nan"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--layers-count", "0"), "--layers-count is 0"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--layers-mode", "adaptve"), "adaptve"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--terms", "directoin=1"), "did you mean direction?"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--terms", "direction"), "'direction'"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--stps", "3"), "Did you mean --steps?"),
        (("adapt", "portraits", "--target", "elf"), "--out"),
        (("invert", "portraits", "a.png", "--out", "o", "--tune-lr", "2"), "--tune-lr is 2.0"),
        (("demo", "--target", "vampire"), "pencil sketch"),
        (("sample", "portraits", "--out", "x.png", "--seeds", "5-1"), "'5-1'"),
        (("sample", "portraits", "--out", "x.png", "--seeds", "0-9999999999"), "10000"),
        (("sample", "portraits", "--out", "x.png", "--seeds", "0-5999,0-5999"), "12000 seeds"),
        (("sample", "portraits", "--out", "x.png", "--seeds", "1,,2"), "''"),
        (("directions", "portraits", "--out", "x", "--rows", "3-1"), "'3-1'"),
        (("info", "portraits", "--threads", "0"), "--threads"),
    ],
)
def test_wrong_usage_is_a_usage_error_of_one_line(run: Run, words: tuple[str, ...], expected: str) -> None:
    code, out, err = run(*words)
    assert (
        code == 2 and expected in err and err.startswith("error: ") and err.count("\n") == 1 and not out and not files()
    )
    with pytest.raises(arguments.UsageError):
        parsed(*words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("info", "missing.pt"), "no such file"),
        (("info", "."), "no such file"),
        (("convert", "portraits", "x.pkl"), "x.pkl"),
        (("convert", "portraits", "x.pt", "--half"), "--half"),
        (("convert", "portraits", "x.onnx", "--half"), "--half"),
        (("convert", "portraits", "x.pt", "--domain", "missing.safetensors"), "missing.safetensors"),
        (("sample", "portraits", "--out", "x.jpg"), "ending in .png"),
        (("sample", "portraits", "--out", "x.png", "--label", "1"), "has no classes"),
        (("adapt", "b.safetensors", "--target", "elf", "--out", "o"), "--guide"),
        (("adapt", "portraits", "--target", "photo", "--out", "o"), "two phrases that differ"),
        (("adapt", "portraits", "--guide", "portrait", "--target", "elf", "--out", "o"), "Did you mean portraits"),
        (("adapt", "portraits", "--guide", "portraits=-1", "--target", "elf", "--out", "o"), "weight -1.0"),
        (("adapt", "portraits", "--target", "elf", "--out", "o", "--layers-mode", "named"), "names"),
        (("compare", "portraits", "portraits", "--out", "x.png"), "named twice"),
        (("compare", "portraits", "b", "--out", "x.png", "--guide", "portraits"), "--guide needs --target"),
    ],
)
def test_user_error_is_one_line_with_exit_code_2(run: Run, words: tuple[str, ...], expected: str) -> None:
    code, out, err = run(*words)
    assert code == 2 and expected in err and err.startswith("error: ") and err.count("\n") == 1
    assert not out and not files()


def test_internal_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(file_commands, "load_generator", broken)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["sample", "portraits", "--out", "x.png"])


def test_device_and_threads_are_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("sample", "portraits", "--out", "x.png", "--seeds", "3", "--threads", 2)[0] == 0 and asked == [2]
    code, _, err = run("sample", "portraits", "--out", "y.png", "--device", "cuda")
    assert code == 2 and "--device" in err


# ---- info and convert ---------------------------------------------------------------------------------------------


def test_info_describes_a_generator(run: Run, shelf: Path) -> None:
    code, out, _ = run("info", "portraits")
    generator = load_generator(shelf / "a.safetensors")
    assert code == 0 and "stylegan2 generator, 16 x 16 pixels" in out and "6 rows of W+, no classes" in out
    assert all(layer.name in out for layer in generator.layers())
    assert f"{sum(p.numel() for p in generator.parameters()):,} parameters" in out
    assert sha256(shelf / "portraits.safetensors") in out and '"made": "for a test"' in out
    assert "provenance" not in run("info", shelf / "b.safetensors")[1]


def test_info_describes_a_domain_which_is_no_generator(run: Run, shelf: Path, tmp_path: Path) -> None:
    generator = load_generator(shelf / "a.safetensors")
    domain = Domain({"synthesis.b4.const": torch.ones(2, 3)}, generator.space(), {"target": "zombie"})
    save_domain(domain, tmp_path / "zombie.safetensors")
    code, out, _ = run("info", tmp_path / "zombie.safetensors")
    assert code == 0 and "6 numbers in 1 parameters" in out and generator.space()[:12] in out and "zombie" in out
    code, _, err = run("sample", tmp_path / "zombie.safetensors", "--out", "x.png")
    assert code == 2 and "looks like a domain; apply it to the generator" in err


def test_info_describes_clip_models(run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("info", shelf / "guide.safetensors")
    assert code == 0 and out.startswith("weights of a CLIP model") and "--guide ARCHITECTURE:" in out
    for name in ("guide.json", "guide.safetensors"):
        (tmp_path / name.replace("guide", "guide-x")).write_bytes((shelf / name).read_bytes())
    monkeypatch.setattr("nada_core.models.clip_loading.BUILTIN", tmp_path)
    code, out, _ = run("info", "portraits-x")
    assert code == 0 and "32 x 32 pixels, 16 dimensions" in out and "--guide portraits-x" in out


def test_convert_both_ways_gives_the_same_images(run: Run, shelf: Path) -> None:
    assert run("convert", "portraits", "a.pt")[:2] == (0, "wrote a.pt\n")
    assert run("convert", "a.pt", "back.safetensors")[0] == 0
    there, back = load_generator(shelf / "a.safetensors"), load_generator("back.safetensors")
    ws = there.map(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(there.synthesize(ws), back.synthesize(ws))
    assert read_provenance("back.safetensors")["source"] == {"name": "a.pt", "sha256": sha256("a.pt")}
    assert "torch file" in run("info", "a.pt")[1]


def test_convert_keeps_provenance_and_overwrites_only_with_force(run: Run, shelf: Path) -> None:
    assert run("convert", shelf / "a.safetensors", "copy.safetensors", "--half")[0] == 0
    assert read_provenance("copy.safetensors") == {"made": "for a test"}
    before = sha256("copy.safetensors")
    code, _, err = run("convert", shelf / "b.safetensors", "copy.safetensors")
    assert code == 2 and "--force" in err and sha256("copy.safetensors") == before
    assert run("convert", shelf / "b.safetensors", "copy.safetensors", "--force")[0] == 0
    assert sha256("copy.safetensors") != before and files() == {"copy.safetensors"}


def test_convert_applies_a_domain(run: Run, shelf: Path) -> None:
    generator = load_generator(shelf / "a.safetensors")
    domain = Domain({"synthesis.b4.const": torch.ones(8, 4, 4)}, generator.space(), {})
    save_domain(domain, "ones.safetensors")
    assert run("convert", shelf / "a.safetensors", "c.safetensors", "--domain", "ones.safetensors")[0] == 0
    name = "synthesis.b4.const"
    assert torch.equal(load_generator("c.safetensors").get_parameter(name), generator.get_parameter(name) + 1)
    used = {"name": "ones.safetensors", "sha256": sha256("ones.safetensors"), "strength": 1.0}
    assert read_provenance("c.safetensors") == {"made": "for a test", "domain": used}


# ---- sample and compare -------------------------------------------------------------------------------------------


def test_sample_writes_a_grid_and_single_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_commands, "MAX_CELLS", 3)  # so that the fourth picture comes in a second turn
    code, out, _ = run("sample", "portraits", "--seeds", "0-2,7", "--out", "o/grid.png", "--separate", "o/all")
    singles = {f"o/all/seed{seed:04d}.png" for seed in (0, 1, 2, 7)}
    assert code == 0 and files() == {"o/grid.png", "o/all/latents.safetensors", *singles}
    assert load_latents("o/all/latents.safetensors").ws.shape[0] == 4
    assert {line.removeprefix("wrote ") for line in out.splitlines()} == files()
    alone = load_image("o/all/seed0007.png")
    assert alone.shape == (1, 3, 16, 16)
    run("sample", "portraits", "--seeds", "7", "--out", "seven.png", "--separate", "again")
    assert (load_image("again/seed0007.png") - alone).abs().max() <= 2 / 255 + 1e-6  # rounding of another batch at most


def test_compare_draws_and_measures(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_commands, "MAX_ROWS", 3)
    a, b = shelf / "a.safetensors", shelf / "b.safetensors"
    asked = ("--seeds", "0-4", "--guide", "portraits", "--target", "zombie")
    code, out, _ = run("compare", a, b, "--out", "ab.png", *asked)
    assert code == 0 and files() == {"ab.png"}
    lines = [line.split() for line in out.splitlines()]
    assert "5 images measured by portraits, from photo to zombie" in out
    assert ["generator", "quality", "direction", "diversity"] in lines
    (row_a,), (row_b,) = ([line for line in lines if line[:1] == [name]] for name in "ab")
    assert len(row_a) == 3 and row_a[-1] == "1.00" and len(row_b) == 4
    assert all(-1 <= float(figure) <= 1 for figure in row_b[1:3]) and float(row_b[3]) > 0
    five = load_image("ab.png").shape
    assert run("compare", a, b, "--out", "ab.png", "--seeds", "0-2")[0] == 2  # it exists
    assert run("compare", a, b, "--out", "ab.png", "--seeds", "0-2", "--force")[1] == "wrote ab.png\n"
    assert load_image("ab.png").shape == five  # the grid stops at MAX_ROWS


def test_compare_refuses_other_latents_and_labels_equal_names_by_path(run: Run, shelf: Path, tmp_path: Path) -> None:
    a, other = shelf / "a.safetensors", shelf / "other.safetensors"
    code, _, err = run("compare", a, other, "--out", "x.png")
    assert code == 2 and "other was not adapted" in err and not files()
    assert file_commands.column_labels(["p/a.pt", "q/a.pt"]) == ["p/a.pt", "q/a.pt"]
    assert file_commands.column_labels(["p/a.pt", "q/b.pt"]) == ["a", "b"]


# ---- adapt --------------------------------------------------------------------------------------------------------


def test_adapt_writes_everything(run: Run, shelf: Path) -> None:
    code, out, err = run(*quick(shelf, "--guide", "portraits=0.5", "--layers-mode", "adaptive", "--layers-count", 2))
    stem = "out/zombie"
    written = {f"{stem}.safetensors", f"{stem}-before-after.png", f"{stem}-loss.png", f"{stem}-layers.png"}
    assert code == 0 and files() == written  # and no autosave is left
    assert {line.removeprefix("wrote ") for line in out.splitlines()} == written
    assert "4/4" in err and "loss" in err

    record = read_provenance(f"{stem}.safetensors")
    assert record["source"] == {"name": "a.safetensors", "sha256": sha256(shelf / "a.safetensors")}
    assert record["prompts"] == {"source": "photo", "target": "zombie"} and record["version"] == nada_core.__version__
    assert [(guide["name"], guide["weight"]) for guide in record["guides"]] == [("portraits", 1.0), ("portraits", 0.5)]
    assert (record["config"]["steps"], record["config"]["layers"]["count"]) == (4, 2)
    assert '"target": "zombie"' in run("info", f"{stem}.safetensors")[1]

    before, after = load_generator(shelf / "a.safetensors"), load_generator(f"{stem}.safetensors")
    assert before.space() == after.space()
    assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True))


def test_search_writes_a_recipe_that_adapt_takes(run: Run, shelf: Path) -> None:
    pytest.importorskip("optuna")
    words = ("search", shelf / "a.safetensors", "--guide", "portraits-64", "--target", "zombie", "--steps", 4)
    words += ("--over", "lr,steps", "--out", "z.json", "--trials")
    code, _, err = run(*words, 2)
    assert code == 2 and "--judge is missing" in err
    words = ("search", *words[1:-1], "--judge", "portraits", "--trials")
    code, out, _ = run(*words, 2)
    assert code == 0 and "the settings to start from" in out
    assert files() == {"z.json", "z-search.png", "z-study.journal", "z-trials/trial-000.png", "z-trials/trial-001.png"}

    adapt = ("adapt", shelf / "a.safetensors", "--guide", "portraits", "--target", "zombie", "--out", "out", "--recipe")
    config = parsed(*map(str, (*adapt, "z.json"))).config
    assert f"lr {config.lr:.4g}, steps {config.steps};" in out.splitlines()[0]
    assert run(*adapt, "z.json")[0] == 0 and read_provenance("out/zombie.safetensors")["config"]["lr"] == config.lr

    code, _, err = run(*words, 3)
    assert code == 2 and "z.json exists" in err
    code, out, _ = run(*words, 3, "--resume")
    assert code == 0 and out.count("trial ") == 3
    code, out, _ = run(*words, 1, "--force")  # a new study
    assert code == 0 and out.count("trial ") == 1


def test_recipe_files_that_cannot_be_used_are_named(run: Run, shelf: Path) -> None:
    Path("bad.json").write_text("{}")
    for name in ("gone.json", "bad.json"):
        code, _, err = run(*quick(shelf, "--recipe", name))
        assert code == 2 and name in err and not Path("out/zombie.safetensors").exists()


def test_recipe_gives_the_defaults_and_flags_override_them(run: Run, shelf: Path) -> None:
    def asked(*words: str) -> Any:
        return parsed("adapt", *words, "--target", "x", "--out", "y")

    paper = asked("ffhq.pkl", "--guide", "portraits", "--recipe", "character")
    assert paper.config == RECIPES["character"].config(AdaptConfig()) and paper.source == "Human"
    assert asked("--recipe", "character", "ffhq.pkl", "--guide", "portraits", "--steps", "7").config.steps == 7
    assert asked("ffhq.pkl", "--recipe", "animal", "--fisher-samples", "5").config.fisher_samples == 5
    own = asked("portraits", "--recipe", "style", "--layers-mode", "adaptive")
    assert own.config.lr == portraits.RECIPE.lr and own.config.terms == {
        "direction": 1.0,
        "angle": 0.25,
        "covariance": 1.0,
    }
    assert own.source == "photo" and own.config.layers.mode == "adaptive"
    assert asked("portraits", "--recipe", "style").config.layers.mode == "all"
    assert all(name in run("adapt", "--help")[1] for name in RECIPES)
    code, _, err = run("adapt", "portraits", "--recipe", "stile", "--target", "elf", "--out", "o")
    assert code == 2 and "few-images" in err
    assert run(*quick(shelf, "--recipe", "character"))[0] == 0
    record = read_provenance("out/zombie.safetensors")["config"]
    assert (record["steps"], record["lr"], record["layers"]["train"]) == (4, 0.01, "offsets")


def test_adapt_to_images_and_to_text_and_images(run: Run, shelf: Path) -> None:
    for index in range(2):  # of two sizes, neither of them the generator's
        save_image(torch.rand(1, 3, 20 + index, 24) * 2 - 1, f"style{index}.png")
    pictures = ("--image", "style0.png", "--image", "style1.png")
    alone = ("adapt", shelf / "a.safetensors", "--guide", "portraits", "--out", "o", "--steps", 2, "--batch", 1)
    assert run(*alone, *pictures)[0] == 0
    assert read_provenance("o/style0.safetensors")["images"] == 2
    assert run(*quick(shelf), *pictures, "--image-weight", 0.25)[0] == 0
    words, images = read_provenance("out/zombie.safetensors")["mixed"]
    assert words["prompts"]["target"] == "zombie" and images == {"images": 2, "weight": 0.25}
    code, _, err = run(*alone)
    assert code == 2 and "--target, --image and --pairs" in err
    code, _, err = run(*quick(shelf), *pictures, "--image-weight", 2, "--force")
    assert code == 2 and "at least 0" in err


def test_judge_explains_the_chosen_step(run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("guide.json", "guide.safetensors"):
        (tmp_path / name).write_bytes((shelf / name).read_bytes())
        (tmp_path / name.replace("guide", "guide-x")).write_bytes((shelf / name).read_bytes())
    torch.manual_seed(1)
    state = {name: value.contiguous() for name, value in open_clip.CLIP(**CLIP).state_dict().items()}
    save_file(state, tmp_path / "guide-x.safetensors")
    monkeypatch.setattr("nada_core.models.clip_loading.BUILTIN", tmp_path)
    code, out, _ = run(*quick(shelf, "--judge", "portraits-x", "--keep-every", 2))
    assert code == 0 and "the best of 2 checkpoints by portraits-x" in out.splitlines()[0]
    assert read_provenance("out/zombie.safetensors")["chosen_because"] == out.splitlines()[0]
    code, _, err = run(*quick(shelf, "--judge", "portraits-x", "--force"))
    assert code == 2 and "keep_every" in err


def test_snapshots_are_written_drawn_and_picked(run: Run, shelf: Path, tmp_path: Path) -> None:
    code, out, _ = run(*quick(shelf, "--steps", 5, "--snapshot-every", 2))
    folder = Path("out/zombie-snapshots")
    names = [f"step-{step:06}.safetensors" for step in (2, 4, 5)]
    assert code == 0 and sorted(path.name for path in folder.iterdir()) == names
    assert all(f"wrote {folder.as_posix()}/{name}" in out for name in names)
    assert load_image("out/zombie-snapshots.png").ndim == 4
    code, out, _ = run("pick", shelf / "a.safetensors", folder, "--step", 4, "--out", "out/four.safetensors")
    assert code == 0 and "step 4" in out and read_provenance("out/four.safetensors")["snapshot"]["step"] == 4
    expected = load_domain(load_generator(shelf / "a.safetensors"), folder / names[1]).state_dict()
    assert all(
        torch.equal(value, expected[name])
        for name, value in load_generator("out/four.safetensors").state_dict().items()
    )
    judge = ("--judge", f"{shelf / 'guide-64.json'}:{shelf / 'guide-64.safetensors'}")
    code, out, err = run("pick", shelf / "a.safetensors", folder, *judge, "--out", "out/best.safetensors")
    assert code == 0 and out.count("score ") == 3, err
    assert f"step {read_provenance('out/best.safetensors')['snapshot']['step']}" in out.splitlines()
    for words, value in (
        (("--step", 3), "2, 4, 5"),
        (("--step", 2, *judge), "--judge"),
        (("--judge", "portraits"), "judge"),
    ):
        code, _, err = run("pick", shelf / "a.safetensors", folder, *words, "--out", "out/none.safetensors")
        assert code == 2 and value in err, err
    for name in ("zombie.safetensors", "four.safetensors"):
        code, _, err = run("pick", f"out/{name}", folder, "--out", "out/none.safetensors")
        assert code == 2 and load_generator(f"out/{name}").weights_fingerprint()[:12] in err, err
    code, _, err = run("pick", shelf / "a.safetensors", tmp_path, "--out", "out/none.safetensors")
    assert code == 2 and "no snapshots" in err and not Path("out/none.safetensors").exists()


def test_snapshots_of_an_earlier_run_are_replaced_with_force_only(run: Run, shelf: Path) -> None:
    assert run(*quick(shelf, "--steps", 5, "--snapshot-every", 2))[0] == 0
    for path in Path("out").glob("*.*"):
        path.unlink()
    code, _, err = run(*quick(shelf, "--steps", 5, "--snapshot-every", 3))
    assert code == 2 and "zombie-snapshots" in err
    assert run(*quick(shelf, "--steps", 5, "--snapshot-every", 3, "--force"))[0] == 0
    files = sorted(path.name for path in Path("out/zombie-snapshots").iterdir())
    assert files == ["step-000003.safetensors", "step-000005.safetensors"]


def test_identity_network_is_loaded_for_the_id_term(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_identity(name: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        asked.append(name)
        return lambda images: torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)

    monkeypatch.setattr(training_flags, "load_identity", load_identity)
    assert run(*quick(shelf, "--id", 0.5, "--identity", "faces.pt"))[0] == 0 and asked == ["faces.pt"]
    code, _, err = run(*quick(shelf, "--id", 0.5, "--force"))
    assert code == 2 and "id term weighs 0.5" in err


def test_similar_prompts_are_warned_about(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nada_core.guidance.prompt_check.MAX_COSINE", -1.0)
    code, _, err = run(*quick(shelf))
    assert code == 0 and err.startswith("warning: portraits reads 'photo' and 'zombie' nearly alike")
    monkeypatch.setattr("nada_core.guidance.prompt_check.MAX_COSINE", 2.0)
    monkeypatch.setattr("nada_core.guidance.prompt_check.MIN_AGREEMENT", 0.0)
    assert "warning" not in run(*quick(shelf, "--force"))[2]


def test_adapt_does_not_overwrite(run: Run, shelf: Path) -> None:
    Path("result.safetensors").write_text("precious")
    words = quick(shelf, "--out", "result.safetensors")
    code, _, err = run(*words)
    assert code == 2 and "--force" in err and Path("result.safetensors").read_text() == "precious"
    assert run(*words, "--force")[0] == 0 and load_generator("result.safetensors")
    assert "result-loss.png" in files()


def test_interrupted_run_says_how_to_resume_and_resumes(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quick(shelf, "--out", "whole.safetensors")
    assert run(*whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        code, out, err = run(*quick(shelf))
    assert code == 130 and not out and "Traceback" not in err
    autosave = "out/zombie.autosave.safetensors"
    assert (
        err.splitlines()[-1]
        == f"Stopped. 3 steps are saved in {autosave}; continue with the same command and --resume."
    )
    assert {name for name in files() if name.startswith("out/")} == {autosave}  # nothing half-written
    assert "autosave of an adaptation after 3 steps, loss" in run("info", autosave)[1]

    code, _, err = run(*quick(shelf))
    assert code == 2 and autosave in err
    code, _, err = run(*quick(shelf, "--resume", "--lr", 0.02))
    assert code == 2 and "belongs to another run" in err
    code, _, err = run(*quick(shelf, "--resume"))
    assert code == 0 and not Path(autosave).exists() and "4/4" in err
    one, two = load_generator("whole.safetensors"), load_generator("out/zombie.safetensors")
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_interrupt_while_the_result_is_written_loses_nothing(
    run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_commands, "save_generator", pressed)
        code, _, err = run(*quick(shelf))
    assert code == 130 and "4 steps are saved" in err.splitlines()[-1] and "out/zombie.safetensors" not in files()
    assert run(*quick(shelf, "--resume"))[0] == 0 and load_generator("out/zombie.safetensors")


def test_interrupt_within_the_first_step_writes_nothing(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nada_core.adaptation.adapt.draw_batch", pressed)
    code, _, err = run(*quick(shelf, "--autosave", "mine.safetensors"))
    assert code == 130 and "before the end of the first step" in err.splitlines()[-1] and not files()


def test_resume_without_an_autosave_starts_and_says_so(run: Run, shelf: Path) -> None:
    code, _, err = run(*quick(shelf, "--resume", "--autosave", "mine.safetensors"))
    assert code == 0 and "no autosave at mine.safetensors" in err and "out/zombie.safetensors" in files()
    assert "mine.safetensors" not in files()


def test_result_paths_and_guide_weights() -> None:
    assert training_commands.result_path("o", "a Zombie, by  Pixar!").as_posix() == "o/a-zombie-by-pixar.safetensors"
    assert training_commands.result_path("o/x.safetensors", "zombie") == Path("o/x.safetensors")
    assert training_commands.result_path("o", "../?").as_posix() == "o/adapted.safetensors"
    assert (
        arguments._weighted("a:/x=y/z.pt") == ("a:/x=y/z.pt", 1.0)
        and arguments._weighted("ViT-B-32:openai=0.5")[1] == 0.5
    )


# ---- photos and latents -------------------------------------------------------------------------------------------


@pytest.fixture
def photos(world: Path) -> list[str]:
    """Two image files of different sizes and formats."""
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 48), mode="bilinear")
    save_image(smooth[0], "one.png")
    to_pil(smooth[1]).resize((20, 30)).convert("L").save("two.jpg")
    return ["one.png", "two.jpg"]


QUICK_INVERT = ("--steps", 5, "--lpips", 0, "--id", 0)


def test_photos_are_inverted_tuned_and_drawn_by_adapted_generators(run: Run, shelf: Path, photos: list[str]) -> None:
    a, b = shelf / "a.safetensors", shelf / "b.safetensors"
    code, out, err = run(
        "invert",
        a,
        *photos,
        *QUICK_INVERT,
        "--tune",
        "--tune-steps",
        3,
        "--tune-lpips",
        0,
        "--adapted",
        b,
        "--out",
        "o",
    )
    assert code == 0, err
    assert files() == {*photos, "o/latents.safetensors", "o/tuning.safetensors", "o/inverted.png"}
    assert "picture 1: " in out and "dB, after 5 steps" in out and "after tuning" in out and "3/3" in err
    assert load_latents("o/latents.safetensors", load_generator(a)).ws.shape == (2, 6, 6)
    assert load_domain(load_generator(b), "o/tuning.safetensors").resolution == 16
    code, _, err = run("invert", a, *photos, *QUICK_INVERT, "--out", "o")
    assert code == 2 and "--force" in err
    assert run("invert", a, *photos, *QUICK_INVERT, "--start", "o/latents.safetensors", "--out", "p")[0] == 0


def test_defaults_of_an_inversion_follow_the_generator_and_the_preset() -> None:
    def asked(*words: str) -> Any:
        return parsed("invert", *words, "--out", "o")

    own, other = asked("portraits", "a.png"), asked("x.pkl", "a.png")
    assert own.config == portraits.INVERT and own.tuning == portraits.TUNE and own.identity == "portraits"
    assert other.config == PRESETS["default"] and other.tuning == TuneConfig() and other.identity is None
    assert other.photos == ("a.png",) and asked("x.pkl", "a.png", "b.png").photos == ("a.png", "b.png")
    report = asked("x.pkl", "a.png", "--preset", "report").config
    assert (report.mse, report.lpips, report.id) == (0.8, 0.5, 1.0)
    assert asked("portraits", "a.png", "--preset", "report", "--id", "2").config.id == 2


def test_encoder_gives_latents_and_the_start_of_an_inversion(run: Run, photos: list[str]) -> None:
    write_torch("e4e.pt", content("e4e"))
    code, out, err = run("encode", "e4e.pt", *photos, "--out", "faces.safetensors")
    assert code == 0 and "picture 1: " in out, err
    assert {"faces.safetensors", "faces.png"} <= files()
    save_generator(load_encoder("e4e.pt").decoder, "theirs.safetensors", {})
    code, out, err = run("invert", "theirs.safetensors", *photos, *QUICK_INVERT, "--encoder", "e4e.pt", "--out", "o")
    assert code == 0 and "after 5 steps" in out, err


def test_align_cuts_a_face_by_points(run: Run, photos: list[str]) -> None:
    given = ("align", "one.png", "--size", 32, "--out", "face.png", "--points", "14,12 30,12 16,28 28,28")
    assert run(*given)[:2] == (0, "wrote face.png\nwrote face.json\n")
    assert load_image("face.png").shape == (1, 3, 32, 32)
    code, _, err = run(*given[:-1], "here", "--force")
    assert code == 2 and "expected x,y in pixels of left eye" in err
    both = "14,12 30,12 16,28 28,28 / 10,8 20,8 11,18 19,18"
    code, out, _ = run(*given[:-1], both, "--face", -1, "--force")
    assert code == 0 and out == "wrote face-0.png\nwrote face-1.png\nwrote face.json\n"
    assert len(load_frames("face.json")) == 2


def test_faces_are_pasted_back_into_their_photo(run: Run, photos: list[str]) -> None:
    photo = load_image("one.png")
    alpha = torch.linspace(-1, 1, 48).mul(127.5).round().div(127.5).expand(1, 1, 40, 48)
    save_image(torch.cat([photo, alpha], 1), "clear.png")
    for name in ("one.png", "clear.png"):
        points = ("--points", "14,12 30,12 16,28 28,28", "--force")
        assert run("align", name, "--size", 32, "--out", "face.png", *points)[0] == 0
        given = ("paste", name, "face.png", "--frames", "face.json", "--out", f"same-{name}")
        assert run(*given)[:2] == (0, f"wrote same-{name}\n")
        assert torch.equal(load_image(f"same-{name}", alpha=True), load_image(name, alpha=True))
    save_image(-load_image("face.png"), "edited.png")
    code, _, err = run("paste", "clear.png", "edited.png", "--frames", "face.json", "--out", "x.png", "--feather", "0")
    assert code == 0, err
    result, before = (load_image(name, alpha=True) for name in ("x.png", "clear.png"))
    assert torch.equal(result[:, 3:], before[:, 3:]) and 0 < (result != before).any(1).float().mean() < 1
    for words, expected in (
        (("two.jpg", "edited.png"), "20 x 30 pixels, expected 48 x 40"),
        (("clear.png", "edited.png", "edited.png"), "2 faces for the 1"),
        (("clear.png", "one.png"), "48 x 40 pixels, expected squares"),
        (("clear.png", "edited.png", "--feather", "2"), "feather"),
    ):
        code, out, err = run("paste", *words, "--frames", "face.json", "--out", "y.png")
        assert code == 2 and expected in err and err.count("\n") == 1 and not out, err
    assert "y.png" not in files()


def test_inverted_faces_are_pasted_back(
    run: Run, shelf: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = shelf / "a.safetensors", shelf / "b.safetensors"
    points = FacePoints.parse("14,12 30,12 16,28 28,28")
    monkeypatch.setattr(face_alignment, "find_faces", lambda _: [points])
    given = ("invert", a, "one.png", *QUICK_INVERT, "--out", "o", "--paste")
    code, _, err = run(*given)
    assert code == 2 and "--paste without --adapted" in err
    code, out, err = run(*given, "--adapted", b, "--tune", "--tune-lpips", 0, "--tune-steps", 2)
    assert code == 0 and "wrote o/one-b.png" in out, err
    changed = (load_image("o/one-b.png") != load_image("one.png")).any(1)
    assert 0 < changed.float().mean() < 1
    monkeypatch.setattr(face_alignment, "find_faces", lambda _: [])
    code, _, err = run(*given, "--adapted", b, "--force")
    assert code == 2 and "no face in the picture of 48 x 40" in err


def test_directions_are_found_and_followed(run: Run, shelf: Path) -> None:
    a = shelf / "a.safetensors"
    for method in ("sefa", "pca"):
        given = ("directions", a, "--method", method, "--count", 2, "--rows", "1-2", "--out", f"{method}.safetensors")
        code, _, err = run(*given)
        assert code == 0 and {f"{method}.safetensors", f"{method}.png"} <= files(), err
    generator = load_generator(a)
    save_latents(sample(generator, [1, 2]), "before.safetensors")
    given = ("edit", a, "before.safetensors", "--direction", "sefa.safetensors", "--name", "1", "--strength", "3")
    assert run(*given, "--out", "after.safetensors")[0] == 0
    moved = load_latents("after.safetensors").ws - load_latents("before.safetensors").ws
    assert (moved.abs().sum((0, 2)) > 0).tolist() == [False, True, True, False, False, False]
    assert run("sample", a, "--latents", "after.safetensors", "--out", "after-grid.png")[0] == 0
    assert run("compare", a, shelf / "b.safetensors", "--latents", "after.safetensors", "--out", "ab.png")[0] == 0
    code, _, err = run("sample", shelf / "other.safetensors", "--latents", "after.safetensors", "--out", "x.png")
    assert code == 2 and "come from another generator" in err


def test_latents_are_edited_by_text(run: Run, shelf: Path) -> None:
    a = shelf / "a.safetensors"
    save_latents(sample(load_generator(a), [1]), "before.safetensors")
    given = ("edit", a, "before.safetensors", "--out", "after.safetensors")
    code, _, err = run(*given, "--text", "photo with glasses", "--steps", 2)
    assert code == 0 and {"after.safetensors", "after.png"} <= files(), err
    for more in ((), ("--text", "glasses", "--direction", "x.safetensors")):
        code, _, err = run(*given, "--force", *more)
        assert code == 2 and "expected one" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("invert", "portraits", "missing.png", "--out", "o"), "no image file"),
        (("invert", "portraits", "small.png", "--identity", "missing.pth", "--out", "o"), "no such file"),
        (("invert", "portraits", "tiny.png", "--id", "0", "--steps", "1", "--out", "o"), "at least 16"),
        (("invert", "portraits", "small.png", "--perceptual", "vgg16", "--out", "o"), "expected vgg, alex, squeeze"),
        (("invert", "portraits", "small.png", "--start", "a", "--encoder", "b", "--out", "o"), "expected one of them"),
        (("encode", "portraits", "small.png", "--out", "x.safetensors"), "no such file"),
        (("align", "small.png", "--out", "x.jpg", "--points", "9,9 14,9 9,14 14,14", "--size", "16"), "ending in .png"),
        (("edit", "portraits", "missing.safetensors", "--text", "elf", "--out", "x.safetensors"), "no such file"),
    ],
)
def test_wrong_photo_is_one_line_with_exit_code_2(run: Run, world: Path, words: tuple[str, ...], expected: str) -> None:
    save_image(torch.zeros(3, 24, 24), "small.png")
    save_image(torch.zeros(3, 1, 1), "tiny.png")
    code, out, err = run(*words)
    assert code == 2 and expected in err and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert files() == {"small.png", "tiny.png"}


# ---- bench --------------------------------------------------------------------------------------------------------


def test_bench_prints_the_time_of_every_part(run: Run, shelf: Path) -> None:
    code, out, _ = run("bench", shelf / "a.safetensors", "--steps", 4, "--precision", "bf16")
    assert code == 0 and not files()
    assert "16 x 16 pixels, batch 2, bf16, guides portraits-64, portraits-vit; " in out and "steps a second" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == ["selection", "teacher", "student", "guide", "backward", "optimiser"]
    assert sum(float(line[-1].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.5)
    code, _, err = run("bench", shelf / "a.safetensors", "--steps", 2)
    assert code == 2 and "2 steps" in err


# ---- build-native -------------------------------------------------------------------------------------------------


def test_build_native_prints_the_library_and_its_gain(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = winograd.BuildResult(Path("cache/library.so"), torch_seconds=0.012, native_seconds=0.004)
    monkeypatch.setattr(winograd, "build", lambda: result)
    code, out, _ = run("build-native")
    assert code == 0 and all(part in out for part in ("library.so", "12.0 ms", "4.0 ms", "3.00 times"))

    def fails() -> None:
        raise winograd.BuildError("no compiler")

    monkeypatch.setattr(winograd, "build", fails)
    code, out, err = run("build-native")
    assert (code, out, err) == (2, "", "error: no compiler\n")


# ---- demo ---------------------------------------------------------------------------------------------------------


def test_demo_prints_measures_and_writes_results(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    generator = StyleGAN2(64, z_dim=24, w_dim=24, mapping_layers=1, widths=[4] * 5, rng=rng)
    save_generator(generator, "world.safetensors", {}, recommended={"adapt": {"steps": 2, "batch": 1}})
    monkeypatch.setitem(BUILTINS, "portraits", Path("world.safetensors").resolve())
    content = Content.measure(generator, rng, samples=500)
    monkeypatch.setattr(Content, "load", lambda: content)
    monkeypatch.setattr(portraits.Judge, "load", lambda: portraits.Judge().eval())
    code, out, _ = run("demo", "--target", "pencil sketch", "--out", "d")
    assert code == 0 and all(word in out for word in ("reference", "before", "diversity", "2 steps in "))
    written = {f"d/pencil-sketch{end}" for end in (".safetensors", "-before-after.png", "-loss.png", "-layers.png")}
    assert files() == {"world.safetensors", *written} and all(f"wrote {name}" in out for name in written)
    assert read_provenance("d/pencil-sketch.safetensors")["prompts"]["target"] == "pencil sketch"


def test_info_describes_the_built_in_generator(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTINS, "portraits", BUILTIN / "generator.safetensors")
    code, out, _ = run("info", "portraits")
    assert code == 0 and "64 x 64 pixels" in out


# ---- nothing is lost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sample", "compare", "adapt", "encode", "directions", "edit", "invert"])
def test_existing_outputs_are_not_overwritten(run: Run, shelf: Path, photos: list[str], command: str) -> None:
    a, out = shelf / "a.safetensors", Path("there.safetensors")
    save_latents(sample(load_generator(a), [0]), "own.safetensors")
    words: dict[str, tuple[object, ...]] = {
        "sample": ("sample", a, "--seeds", "0-1", "--out", "grid.png", "--separate", "each"),
        "compare": ("compare", a, shelf / "b.safetensors", "--out", "grid.png"),
        "adapt": quick(shelf),
        "encode": ("encode", "missing.pt", *photos, "--out", out),
        "directions": ("directions", a, "--count", 2, "--out", out),
        "edit": ("edit", a, "own.safetensors", "--direction", "missing.safetensors", "--out", out),
        "invert": ("invert", a, *photos, *QUICK_INVERT, "--out", "o"),
    }
    kept = {
        "sample": "each/seed0001.png",
        "compare": "grid.png",
        "adapt": "out/zombie-loss.png",
        "invert": "o/inverted.png",
    }.get(command, "there.png")
    Path(kept).parent.mkdir(parents=True, exist_ok=True)
    Path(kept).write_bytes(b"an earlier result")
    code, _, err = run(*words[command])
    assert code == 2 and Path(kept).name in err and Path(kept).read_bytes() == b"an earlier result"


def test_inversion_refuses_unrelated_generators_before_the_work(
    run: Run, shelf: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_commands, "invert", lambda *_: pytest.fail("the inversion ran"))
    words = ("invert", shelf / "a.safetensors", *photos, *QUICK_INVERT, "--out", "o")
    code, _, err = run(*words, "--adapted", shelf / "other.safetensors")
    assert code == 2 and "other was not adapted" in err
    b = shelf / "b.safetensors"
    code, _, err = run(*words, "--adapted", b, "--adapted", b)
    assert code == 2 and "named twice" in err


QUICK_TUNE = ("--tune", "--tune-steps", "2", "--tune-lpips", "0")


def test_missing_network_of_the_tuning_is_refused_before_the_inversion(
    run: Run, shelf: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_commands, "invert", lambda *_: pytest.fail("the inversion ran"))
    code, _, err = run("invert", shelf / "a.safetensors", *photos, *QUICK_INVERT, "--tune", "--out", "o")
    assert code == 2 and "lpips term weighs 1" in err


def test_latents_survive_a_failure_while_drawing(
    run: Run, shelf: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(photo_commands, "compare_grid", full)
    code, _, err = run("invert", shelf / "a.safetensors", *photos, *QUICK_INVERT, *QUICK_TUNE, "--out", "o")
    assert code == 2 and "No space left" in err
    assert {"o/latents.safetensors", "o/tuning.safetensors"} <= files()


def test_generator_survives_a_failure_while_drawing(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(training_commands, "save_image", full)
    assert run(*quick(shelf))[0] == 2
    assert load_generator("out/zombie.safetensors").num_ws == 6


def test_out_of_memory_is_one_line(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("Memory ran out with one latent at a time")

    monkeypatch.setattr(training_commands, "adapt", exhausted)
    code, _, err = run(*quick(shelf))
    assert code == 2 and err.splitlines()[-1].startswith("error: Memory ran out")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_printing_never_fails_a_finished_command(shelf: Path, encoding: str) -> None:
    folder = Path("\u7d20\u63cf")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    words = ["sample", str(shelf / "a.safetensors"), "--seeds", "0", "--out", str(folder / "grid.png")]
    answer = subprocess.run([sys.executable, "-m", "nada_core", *words], capture_output=True, env=environment)
    assert answer.returncode == 0 and (folder / "grid.png").exists()
    assert b"wrote \\u7d20\\u63cf" in answer.stdout


def test_control_characters_of_files_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"\x1b[2J\x9b31m": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert cli.main(["info", str(tmp_path / "x.safetensors")]) == 2
    progress.say("\x1b]0;title\x07 and\ttab")
    output = capsys.readouterr()
    assert output.out == "?]0;title? and\ttab\n" and not re.search(r"[\x1b\x9b]", output.err) and "[2J" in output.err
