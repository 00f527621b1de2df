"""The fits run and write files that the loaders read; `portraits.check` measures their quality."""

import random
from pathlib import Path

import pytest
import torch

from nada_core import load_generator, load_guide
from nada_core.models.arcface import load_identity
from nada_core.models.clip_loading import built_in_guides
from nada_core.portraits import SOURCE, STYLES, render
from nada_core.portraits.content import Content
from nada_core.portraits.fitting import caption_guide
from nada_core.portraits.fitting import generator as fit_generator
from nada_core.portraits.fitting import guide as fit_guide
from nada_core.portraits.fitting import identity as fit_identity
from nada_core.portraits.fitting import judge as fit_judge
from nada_core.portraits.judge import Judge
from nada_core.portraits.render import ATTRIBUTES

BRIEF = 0.004  # minutes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", fit_guide.CONFIGS)
def test_guide_fit_writes_a_loadable_model(tmp_path: Path, name: str) -> None:
    fit_guide.fit(tmp_path, minutes=BRIEF, contents=8, name=name)
    guide = load_guide(tmp_path / f"{name}.safetensors", architecture=tmp_path / f"{name}.json")
    assert guide.encode_images(render(torch.rand(2, len(ATTRIBUTES)), SOURCE)).shape == (2, guide.dim)
    with pytest.raises(ValueError, match="never seen"):
        guide.encode_text(["a photo of a submarine."])


def test_caption_fit_writes_a_loadable_model(tmp_path: Path) -> None:
    config = caption_guide.fit(tmp_path, minutes=BRIEF, contents=8)
    guide = load_guide(config.with_suffix(".safetensors"), architecture=config)
    assert guide.encode_images(render(torch.rand(2, len(ATTRIBUTES)), SOURCE)).shape == (2, guide.dim)
    assert guide.name not in built_in_guides()


def test_alt_texts_are_partly_wrong() -> None:
    rng, label = random.Random(0), STYLES.index("zombie")
    attributes = torch.full((4000, len(ATTRIBUTES)), 0.05)  # narrow faces
    texts = caption_guide.alt_texts(torch.full((4000,), label), attributes, rng)
    assert 0.72 < sum("zombie" in text for text in texts) / 4000 < 0.80  # others are missing or name another style
    faces = [text for text in texts if "a narrow face" in text or "a wide face" in text]
    assert 0.02 < sum("a wide face" in text for text in faces) / len(faces) < 0.1
    assert len(set(texts)) > 2000


def test_caption_fit_sees_no_content_in_two_styles() -> None:
    gallery = fit_guide.Gallery(500, seed=0)
    batch = next(caption_guide.CaptionStage.batches(None, gallery, 1))  # type: ignore[arg-type]
    assert len(batch.pictures) == len(batch.classes) == len(batch.attributes) and not len(batch.shares)
    assert len(batch.attributes.unique(dim=0)) > 0.85 * len(batch.attributes)
    assert len(batch.classes.unique()) > len(STYLES) / 2 and batch.classes.max() == len(STYLES)


def test_generator_fit_writes_a_generator_and_its_content(tmp_path: Path) -> None:
    fit_generator.fit(tmp_path, minutes=BRIEF)
    generator = load_generator(tmp_path / "generator.safetensors")
    content = Content.load(tmp_path / "content.safetensors")
    attributes = content(generator.map(torch.randn(512, generator.z_dim)))
    assert attributes.shape == (512, len(ATTRIBUTES))
    assert attributes.mean(0).sub(0.5).abs().max() < 0.1  # uniform by construction
    assert all(p == 0 for name, p in generator.named_parameters() if name.endswith("noise_strength"))


def test_judge_fit_writes_a_loadable_judge(tmp_path: Path) -> None:
    fit_judge.fit(tmp_path, minutes=BRIEF, contents=8)
    styles, attributes = Judge.load(tmp_path / "judge.safetensors")(render(torch.rand(2, len(ATTRIBUTES))))
    assert styles.shape == (2, len(STYLES) + 1) and attributes.shape == (2, len(ATTRIBUTES))


def test_identity_fit_writes_a_loadable_network(tmp_path: Path) -> None:
    fit_identity.fit(tmp_path, minutes=BRIEF)
    faces = load_identity(tmp_path / "identity.safetensors")(render(torch.rand(3, len(ATTRIBUTES))))
    assert torch.allclose(faces.norm(dim=1), torch.ones(3))


def test_resample_context_changes_all_but_the_identity() -> None:
    rng = torch.Generator().manual_seed(5)
    people = fit_identity.sample_people(10, rng, relatives=True)
    fixed = [index for index, name in enumerate(ATTRIBUTES) if name in fit_identity.IDENTITY]
    same = (fit_identity.resample_context(people, rng) == people).float().mean(0)
    assert same[fixed].min() == 1 and same.sum() == len(fixed)
    shared = (people[:5] == people[5:]).float().mean()
    assert 0.3 < shared < 0.7, "relatives share about half"
    assert (fit_identity.sample_people(10, rng)[:5] == fit_identity.sample_people(10, rng)[5:]).float().mean() == 0


def test_contrastive_loss_is_lower_for_equal_faces_of_a_person() -> None:
    owners = torch.tensor([0, 1, 0, 1])
    apart = torch.eye(4)
    together = torch.eye(4)[owners]
    assert fit_identity.contrastive_loss(together, owners) < 1e-3 < fit_identity.contrastive_loss(apart, owners)


def test_partial_change_returns_the_share_of_the_change() -> None:
    contents = torch.rand(6, len(ATTRIBUTES), generator=torch.Generator().manual_seed(1))
    start, end = render(contents, "photo"), render(contents, "zombie")
    pictures, shares = fit_guide.partial_change(start, end, torch.Generator().manual_seed(2))
    assert ((shares >= 0) & (shares <= 1)).all() and shares.std() > 0.05
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    assert (pictures >= low - 1e-5).all() and (pictures <= high + 1e-5).all()
    again = ((pictures - start) * (end - start)).flatten(1).sum(1) / (end - start).square().flatten(1).sum(1)
    assert torch.allclose(again, shares, atol=1e-5)


def test_adversarial_step_has_a_limited_length() -> None:
    gradient = torch.randn(200, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    step = fit_guide.adversarial_step(gradient, torch.Generator().manual_seed(4)) / 2  # on a 0..1 scale
    length = step.flatten(1).norm(dim=1)
    assert length.max() <= 6.0 + 1e-4 and 0.05 < (length == 0).float().mean() < 0.3 and length.mean() > 1
