"""The fitting scripts run and write what the loaders read; how well they fit is measured by portraits.check."""

from pathlib import Path

import pytest
import torch

from nada_core import load_generator, load_guide
from nada_core.models.arcface import load_identity
from nada_core.portraits import SOURCE, STYLES, render
from nada_core.portraits.content import Content
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
def test_a_guide_is_fitted_in_two_stages_and_loads_like_any_other(tmp_path: Path, name: str) -> None:
    fit_guide.fit(tmp_path, minutes=BRIEF, contents=8, name=name)
    guide = load_guide(tmp_path / f"{name}.safetensors", architecture=tmp_path / f"{name}.json")
    assert guide.encode_images(render(torch.rand(2, len(ATTRIBUTES)), SOURCE)).shape == (2, guide.dim)
    with pytest.raises(ValueError, match="never seen"):
        guide.encode_text(["a photo of a submarine."])


def test_a_generator_is_fitted_and_its_content_comes_along(tmp_path: Path) -> None:
    fit_generator.fit(tmp_path, minutes=BRIEF)
    generator = load_generator(tmp_path / "generator.safetensors")
    content = Content.load(tmp_path / "content.safetensors")
    attributes = content(generator.map(torch.randn(512, generator.z_dim)))
    assert attributes.shape == (512, len(ATTRIBUTES))
    assert attributes.mean(0).sub(0.5).abs().max() < 0.1  # uniform by construction
    assert all(p == 0 for name, p in generator.named_parameters() if name.endswith("noise_strength"))


def test_a_judge_is_fitted(tmp_path: Path) -> None:
    fit_judge.fit(tmp_path, minutes=BRIEF, contents=8)
    styles, attributes = Judge.load(tmp_path / "judge.safetensors")(render(torch.rand(2, len(ATTRIBUTES))))
    assert styles.shape == (2, len(STYLES) + 1) and attributes.shape == (2, len(ATTRIBUTES))


def test_a_face_recogniser_is_fitted(tmp_path: Path) -> None:
    fit_identity.fit(tmp_path, minutes=BRIEF)
    faces = load_identity(tmp_path / "identity.safetensors")(render(torch.rand(3, len(ATTRIBUTES))))
    assert torch.allclose(faces.norm(dim=1), torch.ones(3))


def test_people_keep_what_makes_them_and_nothing_else() -> None:
    rng = torch.Generator().manual_seed(5)
    persons = fit_identity.sample_people(10, rng, relatives=True)
    kept = [index for index, name in enumerate(ATTRIBUTES) if name in fit_identity.IDENTITY]
    same = (fit_identity.resample_context(persons, rng) == persons).float().mean(0)
    assert same[kept].min() == 1 and same.sum() == len(kept)
    shared = (persons[:5] == persons[5:]).float().mean()
    assert 0.3 < shared < 0.7, "relatives share about half"
    assert (fit_identity.sample_people(10, rng)[:5] == fit_identity.sample_people(10, rng)[5:]).float().mean() == 0


def test_the_contrast_falls_when_pictures_of_one_person_meet() -> None:
    owners = torch.tensor([0, 1, 0, 1])
    apart = torch.eye(4)
    together = torch.eye(4)[owners]
    assert fit_identity.contrastive_loss(together, owners) < 1e-3 < fit_identity.contrastive_loss(apart, owners)


def test_half_way_pictures_know_how_far_they_went() -> None:
    contents = torch.rand(6, len(ATTRIBUTES), generator=torch.Generator().manual_seed(1))
    start, end = render(contents, "photo"), render(contents, "zombie")
    pictures, shares = fit_guide.partial_change(start, end, torch.Generator().manual_seed(2))
    assert ((shares >= 0) & (shares <= 1)).all() and shares.std() > 0.05
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    assert (pictures >= low - 1e-5).all() and (pictures <= high + 1e-5).all()
    again = ((pictures - start) * (end - start)).flatten(1).sum(1) / (end - start).square().flatten(1).sum(1)
    assert torch.allclose(again, shares, atol=1e-5)


def test_the_adversary_moves_as_far_as_it_may() -> None:
    slope = torch.randn(200, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    move = fit_guide.adversarial_step(slope, torch.Generator().manual_seed(4)) / 2  # on a 0..1 scale
    length = move.flatten(1).norm(dim=1)
    assert length.max() <= 6.0 + 1e-4 and 0.05 < (length == 0).float().mean() < 0.3 and length.mean() > 1
