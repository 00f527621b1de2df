"""Prompt templates and how phrases are inserted."""

from __future__ import annotations

import pytest

from nada_core.guidance.prompts import BARE, TEMPLATES, fill


def test_templates_are_those_of_clip_without_the_plural() -> None:
    import open_clip

    published = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(published) == 80
    published.remove("a photo of many {}.")
    assert list(TEMPLATES) == published
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 79


def test_fill_keeps_order_and_trims() -> None:
    filled = fill("  sketch ")
    assert len(filled) == 79 and filled[0] == TEMPLATES[0].replace("{}", "sketch")
    assert fill("a {0} sketch", BARE) == ["a {0} sketch"]  # braces of the phrase are text, not a format


@pytest.mark.parametrize("phrase", ["", "  ", None])
def test_empty_phrases_are_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="expected words for a domain"):
        fill(phrase)


def test_bad_templates_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fill("sketch", ())
    with pytest.raises(ValueError, match="exactly one"):
        fill("sketch", ("a photo",))
