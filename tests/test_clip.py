"""CLIP guides: preprocessing, directions, loading, refusals; on a tiny random CLIP saved as a local open_clip file."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from nada_core.guidance.shifts import TextShift
from nada_core.models.checkpoints import save_generator
from nada_core.models.clip import ClipGuide
from nada_core.models.clip_loading import GuideError, built_in_guides, load_guide

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
UNKNOWN = "xylophone"  # outside the vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model config and its weights, with zero token embeddings for one word."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "nada-test-tiny.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    for token in open_clip.SimpleTokenizer().encode(UNKNOWN):
        model.token_embedding.weight.data[token] = 0
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def guide(folder: Path) -> ClipGuide:
    return load_guide(folder / "tiny.safetensors", architecture=folder / "nada-test-tiny.json")


def noise(n: int = 2, height: int = 48, width: int = 48) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---- preprocessing ------------------------------------------------------------------------------------------------


def at_224(image: Tensor, guide: ClipGuide, antialias: bool) -> Tensor:
    """One channel as prepared for a 224-pixel model, in 0..1."""
    other = ClipGuide("x", guide.model, guide._tokenizer, guide.dim, antialias)
    other.size = (224, 224)
    return (other.prepare(image) * other.std + other.mean)[0, 0]


def test_antialiasing_removes_frequencies_beyond_the_model_resolution(guide: ClipGuide) -> None:
    x = torch.arange(1024)
    wave = torch.sin(2 * math.pi * 0.3 * x).expand(1, 3, 1024, 1024)  # 0.3 cycles a pixel: beyond 224's limit
    checker = (((x[:, None] + x) % 2) * 2.0 - 1).expand(1, 3, 1024, 1024)
    rms = {on: 2 * at_224(wave, guide, on).sub(0.5).std().item() for on in (True, False)}
    assert rms[True] < 0.05 and rms[False] > 0.5
    assert at_224(checker, guide, True).sub(0.5).abs().max() < 0.02
    assert at_224(torch.full((1, 3, 1024, 1024), 0.4), guide, True).sub(0.7).abs().max() < 1e-5


@pytest.mark.parametrize(("value", "fraction"), [(-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (1.4, 1.2)])
def test_prepare_normalizes_with_the_model_mean_and_std(guide: ClipGuide, value: float, fraction: float) -> None:
    expected = (fraction - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)
    for size in ((32, 32), (64, 64), (20, 20)):
        got = guide.prepare(torch.full((1, 3, *size), value))
        assert got.shape == (1, 3, 32, 32)
        torch.testing.assert_close(got[0].mean((1, 2)), expected, atol=1e-5, rtol=1e-5)


def test_prepare_crops_the_center_and_does_not_resample_equal_sizes(guide: ClipGuide) -> None:
    image = noise(1, 32, 32)
    plain = guide.prepare(image)
    torch.testing.assert_close(plain, ((image + 1) / 2 - guide.mean) / guide.std)
    for wide in (F.pad(image, (6, 6)), F.pad(image, (0, 0, 6, 6))):
        torch.testing.assert_close(guide.prepare(wide), plain)
    tall = ClipGuide("x", guide.model, guide._tokenizer, guide.dim)
    tall.size = (48, 24)  # models need not be square
    assert all(tall.prepare(noise(1, *s)).shape[-2:] == (48, 24) for s in ((64, 64), (31, 97), (97, 31), (48, 24)))


def test_image_embeddings_are_unit_vectors_and_differentiable(guide: ClipGuide) -> None:
    image = noise().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = guide.encode_images(image)
    assert embedded.shape == (2, guide.dim) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embedded, guide.encode_images(image), atol=0, rtol=0)  # autocast changed nothing
    embedded[:, 0].sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.ne(0).any()
    assert all(not p.requires_grad and p.grad is None for p in guide.parameters())
    assert not guide.train().training and not guide.model.training
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        guide.encode_images(torch.zeros(3, 8, 8))


def test_text_embeddings_are_unit_vectors_without_gradients(guide: ClipGuide) -> None:
    embedded = guide.encode_text(["photo", "sketch", "photo"])
    assert embedded.shape == (3, 16) and not embedded.requires_grad and not embedded.is_inference()
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(embedded[0], embedded[2])


def test_unknown_words_are_named(guide: ClipGuide) -> None:
    with pytest.raises(ValueError, match=UNKNOWN):
        guide.encode_text(["a photo", f"a {UNKNOWN}, drawn"])
    with pytest.raises(ValueError, match="at least one"):
        guide.encode_text([])
    with pytest.raises(ValueError, match="Shorten it"):
        guide.encode_text(["face " * 30])


def test_fingerprint_depends_on_weights_and_preprocessing(guide: ClipGuide, folder: Path) -> None:
    again = load_guide(f"{folder / 'nada-test-tiny.json'}:{folder / 'tiny.safetensors'}")
    assert again.fingerprint == guide.fingerprint and len(guide.fingerprint) == 16
    again.antialias = False
    again.__dict__.pop("fingerprint")
    assert again.fingerprint != guide.fingerprint


def test_folded_batch_norms_give_the_same_embeddings() -> None:
    path = built_in_guides()["portraits"]
    model = open_clip.CLIP(**json.loads(path.read_text())).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(path.with_suffix(".safetensors")).items()})
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all((norm.running_mean != 0).any() for norm in norms)
    guide, images = load_guide("portraits"), noise(4, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in guide.modules())
    results = {}
    for name, encode in (("whole", model.encode_image), ("folded", guide.model.encode_image)):
        x = guide.prepare(images).requires_grad_()
        out = F.normalize(encode(x), dim=-1)
        (grad,) = torch.autograd.grad(out[:, 0].sum(), x)
        results[name] = (out.detach(), grad)
    torch.testing.assert_close(results["folded"][0], results["whole"][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(results["folded"][1], results["whole"][1], atol=1e-6, rtol=1e-4)


def test_sequence_first_attention_gives_the_same_embeddings(folder: Path, guide: ClipGuide) -> None:
    model = open_clip.CLIP(**CONFIG).eval()
    model.load_state_dict(load_file(folder / "tiny.safetensors"))
    x, whole = guide.prepare(noise(3)), []
    (block,) = guide.model.visual.transformer.resblocks  # type: ignore[union-attr]
    hook = block.attn.register_forward_pre_hook(lambda _, given: whole.append(given[0].is_contiguous()))
    torch.testing.assert_close(guide.model.encode_image(x), model.encode_image(x), atol=1e-6, rtol=1e-5)
    hook.remove()
    assert whole == [True] and not block.attn.batch_first and block.attn.in_proj_weight.shape == (96, 32)


# ---- loading ------------------------------------------------------------------------------------------------------


def test_loaded_weights_equal_the_file(guide: ClipGuide) -> None:
    assert guide.name == "nada-test-tiny:tiny.safetensors" and guide.size == (32, 32)
    tokens = open_clip.tokenize(["a photo"], 24)
    torch.testing.assert_close(guide.encode_text(["a photo"]), F.normalize(guide.model.encode_text(tokens), dim=-1))


@pytest.mark.parametrize("name", sorted(built_in_guides()))
def test_built_in_guide_reads_every_template(name: str) -> None:
    guide = load_guide(name)
    assert guide.name == name
    assert TextShift("photo", "pencil sketch").direction(guide).shape == (1, guide.dim)


def test_first_built_in_guide_is_portraits() -> None:
    assert list(built_in_guides())[0] == "portraits"


def test_built_in_guides_are_listed_from_files(
    guide: ClipGuide, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nada_core.models.clip_loading.BUILTIN", tmp_path)
    for stem in ("guide", "guide-vit"):
        (tmp_path / f"{stem}.json").write_bytes((folder / "nada-test-tiny.json").read_bytes())
        (tmp_path / f"{stem}.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes())
    loaded = load_guide("portraits-vit")
    assert loaded.name == "portraits-vit" and loaded.fingerprint == guide.fingerprint
    with pytest.raises(GuideError, match="Did you mean portraits"):
        load_guide("portrait")
    (tmp_path / "guide.safetensors").unlink()
    with pytest.raises(GuideError, match=r"guide\.safetensors' is neither a file"):
        load_guide("portraits")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("portrait", "no guide 'portrait'"),
        ("ViT-B-23:openai", "Did you mean ViT-B-32:openai"),
        ("ViT-B-32:opnai", "tag of ViT-B-32. Did you mean openai"),
        ("ViT-B-32:/no/such/file.safetensors", "neither a file nor a published tag"),
        ("C:\\guides\\x.safetensors", "no guide"),
        ("", "no guide"),
        ("none.json:x", "config none.json could not be used"),
        ("C:\\none.json:C:\\x.safetensors", r"config C:\\none\.json could not be used"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(GuideError, match=message):
        load_guide(name)


def test_path_without_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "tiny.safetensors"
    with pytest.raises(GuideError, match="needs its architecture"):
        load_guide(weights)
    with pytest.raises(GuideError, match=r"no architecture 'ViT-B32'\. Did you mean ViT-B-32"):
        load_guide(weights, architecture="ViT-B32")
    (tmp_path / "half.json").write_text('{"embed_dim": 4}')
    with pytest.raises(GuideError, match="expected embed_dim, vision_cfg and text_cfg"):
        load_guide(weights, architecture=tmp_path / "half.json")


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    other = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "width": 48}}
    (tmp_path / "nada-test-other.json").write_text(json.dumps(other))
    with pytest.raises(GuideError, match="does not hold weights of nada-test-other"):
        load_guide(folder / "tiny.safetensors", architecture=tmp_path / "nada-test-other.json")


def test_config_that_changes_after_loading_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip reads all configs again whenever one is added."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    for name in ("nada-test-first", "nada-test-second"):
        (tmp_path / f"{name}.json").write_text(json.dumps(CONFIG))
    load_guide(folder / "tiny.safetensors", architecture=tmp_path / "nada-test-first.json")
    (tmp_path / "nada-test-first.json").write_text("{")
    with pytest.raises(GuideError, match="loaded before has changed"):
        load_guide(folder / "tiny.safetensors", architecture=tmp_path / "nada-test-second.json")


def test_published_weights_need_torch_2_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip reads them with torch.load, which could run code before."""
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(GuideError, match="got torch 2.5.1"):
        load_guide("ViT-B-32:openai")


def test_config_does_not_replace_one_of_open_clip(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(CONFIG))
    own = open_clip.get_model_config("ViT-B-32")
    with pytest.raises(GuideError, match="ViT-B-32 of its own"):
        load_guide(folder / "tiny.safetensors", architecture=tmp_path / "ViT-B-32.json")
    assert open_clip.get_model_config("ViT-B-32") == own


def test_missing_open_clip_names_the_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(GuideError, match="requirements.txt"):
        load_guide("portraits")


class Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran-hostile-code"),))


@pytest.mark.filterwarnings("ignore:.*(torch.jit|TorchScript)")
def test_code_in_files_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, "hostile.pt", pickle_module=pickle)
    with pytest.raises(GuideError, match="list of harmless globals"):
        load_guide("hostile.pt", architecture=folder / "nada-test-tiny.json")
    assert not Path("ran-hostile-code").exists()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), "script.pt")
    with pytest.raises(GuideError, match="TorchScript"):
        load_guide("script.pt", architecture=folder / "nada-test-tiny.json")
    Path("broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(GuideError, match="broken.safetensors"):
        load_guide("broken.safetensors", architecture=folder / "nada-test-tiny.json")


def test_failed_download_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(GuideError, match=r"not known.*vit_base_patch32_clip_224.openai.*ViT-B-32-quickgelu:/path"):
        load_guide("ViT-B-32:openai")


def test_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    with pytest.raises(GuideError, match="needs the Python package transformers"):
        load_guide(folder / "tiny.safetensors", architecture=folder / "nada-test-tiny.json")


def test_tokenizer_failure_is_not_blamed_on_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(GuideError, match="tokenizer of nada-test-tiny.*couldn't connect.*the weights were"):
        load_guide(folder / "tiny.safetensors", architecture=folder / "nada-test-tiny.json")


def transformers_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"text_model.embeddings.token_embedding.weight": state["token_embedding.weight"]}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
        ("cut", "safetensors file"),
        ("transformers", "text tower"),
        ("generator", "as a generator"),
    ],
)
def test_file_that_is_no_clip_model_is_named(folder: Path, tmp_path: Path, content: bytes | str, kind: str) -> None:
    path, whole = tmp_path / "given.safetensors", (folder / "tiny.safetensors").read_bytes()
    if content == "cut":
        content = whole[: len(whole) // 2]
    if content == "transformers":
        content = safetensors.torch.save(transformers_layout(safetensors.torch.load(whole)))
    if content == "generator":
        save_generator(tiny.generator(), path, {})
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GuideError, match=kind):
        load_guide(path, architecture=folder / "nada-test-tiny.json")


@pytest.mark.parametrize("wrapping", ["plain", "module", "state_dict", "openai"])
def test_wrapped_state_dicts_give_the_same_guide(folder: Path, tmp_path: Path, guide: ClipGuide, wrapping: str) -> None:
    state: dict[str, Any] = safetensors.torch.load_file(folder / "tiny.safetensors")
    if wrapping == "module":
        state = {f"module.{name}": value for name, value in state.items()}
    if wrapping == "state_dict":
        state = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    if wrapping == "openai":
        state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
        state["vocab_size"] = torch.tensor(49408)
    torch.save(state, tmp_path / "wrapped.pt")
    other = load_guide(tmp_path / "wrapped.pt", architecture=folder / "nada-test-tiny.json")
    assert other.fingerprint == guide.fingerprint


def test_loading_a_file_logs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_guide(folder / "tiny.safetensors", architecture=folder / "nada-test-tiny.json")
    assert not caplog.records
    logging.warning("No pretrained weights loaded")  # the filter is gone
    assert len(caplog.records) == 1


def test_local_files_download_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    load_guide(folder / "tiny.safetensors", architecture=folder / "nada-test-tiny.json")
    with pytest.raises(GuideError, match="no guide"):
        load_guide("openai")


def test_published_tags_set_activation_and_normalization(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights were made with QuickGELU; open_clip would only warn and load them into another network."""
    settings_of = {}
    tiny = open_clip.create_model

    def create(name: str, **settings: object) -> torch.nn.Module:
        settings_of[name] = settings
        return tiny("nada-test-tiny", pretrained=str(folder / "tiny.safetensors"))

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: open_clip.tokenize)
    load_guide("ViT-B-32:openai", cache_dir="here")
    assert settings_of["ViT-B-32"]["force_quick_gelu"] and settings_of["ViT-B-32"]["cache_dir"] == "here"
    load_guide("ViT-B-32:laion2b_s34b_b79k")
    assert not settings_of["ViT-B-32"]["force_quick_gelu"]
    load_guide(folder / "tiny.safetensors", architecture="ViT-B-16-SigLIP2")
    assert settings_of["ViT-B-16-SigLIP2"]["force_preprocess_cfg"] == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_loading_keeps_the_global_random_state_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before, filters = torch.get_rng_state(), list(logging.getLogger().filters)
    load_guide("portraits")
    assert torch.equal(before, torch.get_rng_state())
    assert not caplog.records and logging.getLogger().filters == filters


def test_copies_share_the_tokenizer() -> None:
    original = tiny.guide()
    copied = copy.deepcopy(original)
    assert copied._tokenizer is original._tokenizer and copied.fingerprint == original.fingerprint
    assert copied.model is not original.model and torch.equal(copied.model.pixels, original.model.pixels)
    assert copied.model.pixels.data_ptr() != original.model.pixels.data_ptr()
