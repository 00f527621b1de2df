"""The texts of the nodes in other languages, and their help: complete, up to date, and true to the schemas."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host.double import install, load_pack
from host.make_locales import ENGLISH, texts, written

ROOT = Path(__file__).parents[1]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
TRANSLATIONS = ("ru", "zh")

#: What the page takes for the syntax of a message. Frontend 1.42 throws at such a tooltip and shows nothing.
SYNTAX = re.compile(r"[{}@|]")

#: Names that are the same in any language.
SAME = {"beta1", "beta2"}

#: What stays as it is wherever it occurs: names, and words that are typed into a box or found in a list.
KEPT = ("Adam", "CLIP", "HyperDomainNet", "NADA", "NVIDIA", "OpenAI", "StyleGAN", "ToRGB", "open_clip", "portraits",
        "rosinality", "photo, human, dog, church", "pencil sketch, watercolor painting", "pixel art",
        "zombie, elf, anime, joker, marble statue")  # fmt: skip

#: A number, path, file ending or token: what no language changes, and no word of the language either.
PART, NO_WORD = re.compile(r"[A-Za-z0-9_./%:+-]+"), re.compile(r"[\d_/%]|^[.-]\w")

#: Options that are words of prose, too; they are meant where a colon or a comma follows.
PROSE = {"all", "constant", "cosine", "none", "random", "true"}

#: How a term is said in every text that has it.
TERMS = {
    "ru": {"generator": "генератор", "latent": "латент", "layer": "сло[йяеёию]", "domain": "домен", "guide": "гид",
           "seed": "сид", "truncat": "ус[её][кч]", "class of": "класс", "row": "строк", "weight": "вес",
           "direction": "направлен", "loss": "потер", "picture|image": "изображен", "train(s|ed|ing)": "обуч"},
    "zh": {"generator": "生成器", "latent": "潜变量", "layer": "层", "domain": "域", "guide": "引导模型",
           "seed": "种子", "truncat": "截断", "class of": "类别", "row": "行", "weight": "权重",
           "direction": "方向", "loss": "损失", "picture|image": "图像", "train(s|ed|ing)": "训练"},
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        host = install(patch, tmp_path_factory.mktemp("host"))
        with load_pack(ROOT, host) as pack:
            return [node.GET_SCHEMA() for node in pack.nodes]


@pytest.fixture(scope="module")
def told(schemas: list[Any]) -> dict[str, str]:
    return flat(texts(schemas))


def read(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    """{"a": {"b": "text"}} -> {"a.b": "text"}"""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return leaves


def literals(text: str) -> Counter[str]:
    """The numbers, paths, file endings and tokens in a text."""
    found = (part.rstrip(".:-+/") for part in PART.findall(text))
    return Counter(part for part in found if NO_WORD.search(part))


def both(told: dict[str, str], language: str) -> Iterator[tuple[str, str, str]]:
    """Every text: its key, the English and the other one."""
    other = flat(read(language))
    yield from ((key, text, other[key]) for key, text in told.items())


# ---- texts --------------------------------------------------------------------------------------------------------


def test_english_is_what_the_schemas_say(schemas: list[Any]) -> None:
    made = written(texts(schemas))
    assert ENGLISH.read_text(encoding="utf-8") == made, "run python -m tests.host.make_locales, then translate"


def test_every_text_is_told(told: dict[str, str]) -> None:
    assert [key for key, text in told.items() if not text] == []


def test_the_page_can_read_it(told: dict[str, str]) -> None:
    assert [key for key, text in told.items() if SYNTAX.search(text)] == []


def test_there_are_no_other_files() -> None:
    # Not main.json: its names of categories would hold for all packs.
    expected = {f"{language}/nodeDefs.json" for language in ("en", *TRANSLATIONS)}
    assert {path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*.*")} == expected


@pytest.mark.parametrize("path", sorted(LOCALES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_says_nothing_twice(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == written(json.loads(text))


@pytest.mark.parametrize("language", TRANSLATIONS)
class TestTranslation:
    def test_it_has_the_same_texts(self, told: dict[str, str], language: str) -> None:
        assert list(flat(read(language))) == list(told)

    def test_it_is_a_translation(self, told: dict[str, str], language: str) -> None:
        left = [key for key, text, other in both(told, language) if not other.strip() or other == text]
        assert [key for key in left if told[key] not in SAME] == []

    def test_the_page_can_read_it(self, told: dict[str, str], language: str) -> None:
        assert [key for key, _, other in both(told, language) if SYNTAX.search(other)] == []

    def test_numbers_and_paths_are_kept(self, told: dict[str, str], language: str) -> None:
        for key, text, other in both(told, language):
            assert key.endswith(".name") or literals(other) == literals(text), key

    def test_names_are_kept(self, told: dict[str, str], language: str) -> None:
        for key, text, other in both(told, language):
            quoted = [part.partition("{")[0].strip() for part in re.findall(r'"([^"]*)"', text)]
            named = [name for name in KEPT if name in text] + ["R"] * bool(re.search(r"\bR\b", text))
            assert [name for name in (*quoted, *named) if name not in other] == [], key

    def test_options_are_kept(self, schemas: list[Any], language: str) -> None:
        # The page shows options as they are saved in workflows.
        for schema in schemas:
            options = {name for one in schema.inputs for name in getattr(one, "options", None) or ()}
            for key, text, other in both(flat(texts([schema])), language):
                for name in options:
                    end = r"(?=[:,])" if name in PROSE else r"\b"
                    if not key.endswith(".name") and re.search(rf"\b{re.escape(name)}{end}", text, re.IGNORECASE):
                        assert name in other, f"{key}: {name}"

    def test_nodes_are_called_by_their_names(self, told: dict[str, str], language: str) -> None:
        titles = {text: other for key, text, other in both(told, language) if key.endswith(".display_name")}
        assert len(set(titles.values())) == len(titles), "two nodes have one name"
        for key, text, other in both(told, language):
            for title, called in titles.items():
                if re.search(rf"\b{title}\b", text):
                    assert called in other, f"{key} does not call {title} {called}"

    def test_terms_are_the_same_everywhere(self, told: dict[str, str], language: str) -> None:
        wrong = []
        for key, text, other in both(told, language):
            words = PART.sub(lambda part: "" if "/" in part[0] else part[0], text)  # a folder's name is no term
            for term, called in TERMS[language].items():
                if re.search(rf"\b({term})", words, re.IGNORECASE) and not re.search(called, other, re.IGNORECASE):
                    wrong.append(f"{key}: {text!r} has {term!r}, {other!r} has no {called!r}")
        assert not wrong, "\n".join(wrong)


# ---- help ---------------------------------------------------------------------------------------------------------


def rows(page: str, heading: str) -> list[str]:
    """The first cells of the table under a heading."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]


def test_every_node_has_help(schemas: list[Any]) -> None:
    assert {path.parent.name for path in DOCS.glob("*/en.md")} == {schema.node_id for schema in schemas}


def test_help_speaks_of_every_input_and_output(schemas: list[Any]) -> None:
    for schema in schemas:
        page = (DOCS / schema.node_id / "en.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n"), schema.node_id
        assert sorted(rows(page, "Inputs")) == sorted(one.id for one in schema.inputs), schema.node_id
        assert rows(page, "Outputs") == [one.display_name for one in schema.outputs], schema.node_id


@pytest.mark.parametrize("path", sorted(DOCS.glob("*/*.md")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pictures_of_help_are_there(path: Path) -> None:
    # The page looks for them relative to web/docs.
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", path.read_text(encoding="utf-8"))
    assert [name for name in shown if not name.startswith(f"{path.parent.name}/") or not (DOCS / name).is_file()] == []
