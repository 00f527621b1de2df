"""Translated node texts and help pages: complete, up to date and consistent with the schemas."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host.double import install, load_pack
from host.make_locales import ENGLISH, inputs, texts, written

ROOT = Path(__file__).parents[1]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
TRANSLATIONS = ("ru", "zh")

#: Message syntax of the frontend. Version 1.42 fails on such a tooltip and shows nothing.
SYNTAX = re.compile(r"[{}@|]")

#: Names that are not translated.
SAME = {"beta1", "beta2"}

#: Proper names, and words that users type or select: unchanged in every language.
UNTRANSLATED = (
    "Adam",
    "CLIP",
    "FFHQ",
    "GANSpace",
    "HyperDomainNet",
    "InterFaceGAN",
    "LPIPS",
    "NADA",
    "NVIDIA",
    "OpenAI",
    "PCA",
    "PTI",
    "ReStyle",
    "SeFa",
    "StyleCLIP",
    "StyleGAN",
    "ToRGB",
    "mtcnn-runtime",
    "open_clip",
    "pSp",
    "portraits",
    "rosinality",
    "photo, human, dog, church",
    "pencil sketch, watercolor painting",
    "pixel art",
    "zombie, elf, anime, joker, marble statue",
)

#: Numbers, paths, file extensions and tokens, which are the same in every language.
PART, NO_WORD = re.compile(r"[A-Za-z0-9_./%:+-]+"), re.compile(r"[\d_/%]|^[.-]\w")

#: Options that are also ordinary words; they count as options before a colon or a comma.
PROSE = {
    *(
        "all",
        "animal",
        "automatic",
        "both",
        "character",
        "constant",
        "cosine",
        "creature",
        "images",
        "judge",
        "memory",
        "none",
    ),
    *("nothing", "off", "on", "optimizer", "random", "similarity", "style", "the face", "the middle", "true"),
}

#: Required translation of each term.
TERMS = {
    "ru": {
        "generator": "генератор",
        "latent": "латент",
        "layer": "сло[йяеёию]",
        "domain": "домен",
        "guide": "гид",
        "seed": "сид",
        "truncat": "ус[её][кч]",
        "class of": "класс",
        "row": "строк",
        "weight": "вес",
        "direction": "направлен",
        "encoder": "энкодер",
        "recogni": "распознав",
        "loss": "потер",
        "picture|image": "изображен",
        "train(s|ed|ing)": "обуч",
    },
    "zh": {
        "generator": "生成器",
        "latent": "潜变量",
        "layer": "层",
        "domain": "域",
        "guide": "引导模型",
        "seed": "种子",
        "truncat": "截断",
        "class of": "类别",
        "row": "行",
        "weight": "权重",
        "direction": "方向",
        "encoder": "编码器",
        "recogni": "人脸识别",
        "loss": "损失",
        "picture|image": "图像",
        "train(s|ed|ing)": "训练",
    },
}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        host = install(patch, tmp_path_factory.mktemp("host"))
        with load_pack(ROOT, host) as pack:
            return [node.GET_SCHEMA() for node in pack.nodes]


@pytest.fixture(scope="module")
def english(schemas: list[Any]) -> dict[str, str]:
    return flat(texts(schemas))


def read(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    """{"a": {"b": "text"}} -> {"a.b": "text"}"""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return leaves


def short(name: str) -> str:
    """The name of a node in texts, without the part in parentheses."""
    return re.split(r" ?[(（]", name)[0]


def literals(text: str) -> Counter[str]:
    """Numbers, paths, file extensions and tokens in a text."""
    found = (part.rstrip(".:-+/") for part in PART.findall(text))
    return Counter(part for part in found if NO_WORD.search(part))


def translations(english: dict[str, str], language: str) -> Iterator[tuple[str, str, str]]:
    """All texts: key, English, translation."""
    other = flat(read(language))
    yield from ((key, text, other[key]) for key, text in english.items())


def missing_terms(key: str, text: str, other: str, language: str) -> list[str]:
    """Terms of the English text whose required translation is missing."""
    words = PART.sub(lambda part: "" if re.search(r"[/_]|^:", part[0]) else part[0], text)  # neither paths nor code
    return [
        f"{key}: {text!r} has {term!r}, {other!r} has no {called!r}"
        for term, called in TERMS[language].items()
        if re.search(rf"\b({term})", words, re.IGNORECASE) and not re.search(called, other, re.IGNORECASE)
    ]


# ---- texts --------------------------------------------------------------------------------------------------------


def test_english_matches_the_schemas(schemas: list[Any]) -> None:
    made = written(texts(schemas))
    assert ENGLISH.read_text(encoding="utf-8") == made, "run python -m tests.host.make_locales, then translate"


def test_texts_are_not_empty(english: dict[str, str]) -> None:
    assert [key for key, text in english.items() if not text] == []


def test_texts_contain_no_message_syntax(english: dict[str, str]) -> None:
    assert [key for key, text in english.items() if SYNTAX.search(text)] == []


def test_folder_contains_only_node_definitions() -> None:
    # No main.json: its category names would apply to all packs.
    expected = {f"{language}/nodeDefs.json" for language in ("en", *TRANSLATIONS)}
    assert {path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*.*")} == expected


@pytest.mark.parametrize("path", sorted(LOCALES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_file_is_normalized(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == written(json.loads(text))


@pytest.mark.parametrize("language", TRANSLATIONS)
class TestTranslation:
    def test_keys_match_english(self, english: dict[str, str], language: str) -> None:
        assert list(flat(read(language))) == list(english)

    def test_texts_are_translated(self, english: dict[str, str], language: str) -> None:
        left = [key for key, text, other in translations(english, language) if not other.strip() or other == text]
        assert [key for key in left if english[key] not in SAME] == []

    def test_texts_contain_no_message_syntax(self, english: dict[str, str], language: str) -> None:
        assert [key for key, _, other in translations(english, language) if SYNTAX.search(other)] == []

    def test_numbers_and_paths_match(self, english: dict[str, str], language: str) -> None:
        for key, text, other in translations(english, language):
            assert key.endswith(".name") or literals(other) == literals(text), key

    def test_names_are_unchanged(self, english: dict[str, str], language: str) -> None:
        for key, text, other in translations(english, language):
            quoted = [part.partition("{")[0].strip() for part in re.findall(r'"([^"]*)"', text)]
            named = [name for name in UNTRANSLATED if name in text] + ["R"] * bool(re.search(r"\bR\b", text))
            assert [name for name in (*quoted, *named) if name not in other] == [], key

    def test_options_are_unchanged(self, schemas: list[Any], language: str) -> None:
        # The frontend shows options untranslated.
        for schema in schemas:
            declared = [option for _, one in inputs(schema.inputs) for option in getattr(one, "options", None) or ()]
            options = {getattr(option, "key", option) for option in declared}
            for key, text, other in translations(flat(texts([schema])), language):
                for name in options:
                    end = r"(?=[:,])" if name in PROSE else r"\b"
                    if not key.endswith(".name") and re.search(rf"\b{re.escape(name)}{end}", text, re.IGNORECASE):
                        assert name in other, f"{key}: {name}"

    def test_node_names_are_consistent(self, english: dict[str, str], language: str) -> None:
        titles = {text: other for key, text, other in translations(english, language) if key.endswith(".display_name")}
        assert len(set(titles.values())) == len(titles), "two nodes have one name"
        for key, text, other in translations(english, language):
            for title, called in ((short(title), short(called)) for title, called in titles.items()):
                if re.search(rf"\b{title}\b", text):
                    assert called in other, f"{key} does not call {title} {called}"

    def test_terms_are_consistent(self, english: dict[str, str], language: str) -> None:
        assert [word for entry in translations(english, language) for word in missing_terms(*entry, language)] == []


# ---- help ---------------------------------------------------------------------------------------------------------


def rows(page: str, heading: str) -> list[str]:
    """First cells of the table under a heading."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]


def test_nodes_have_help_pages(schemas: list[Any]) -> None:
    assert {path.parent.name for path in DOCS.glob("*/en.md")} == {schema.node_id for schema in schemas}


def test_help_lists_all_inputs_and_outputs(schemas: list[Any]) -> None:
    for schema in schemas:
        page = (DOCS / schema.node_id / "en.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n"), schema.node_id
        ids = {one.id for _, one in inputs(schema.inputs)}
        assert sorted(rows(page, "Inputs")) == sorted(ids), schema.node_id
        assert rows(page, "Outputs") == [one.display_name for one in schema.outputs], schema.node_id


@pytest.mark.parametrize("path", sorted(DOCS.glob("*/*.md")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_help_images_exist(path: Path) -> None:
    # The frontend resolves links relative to web/docs.
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", path.read_text(encoding="utf-8"))
    assert [name for name in shown if not name.startswith(f"{path.parent.name}/") or not (DOCS / name).is_file()] == []


# ---- help in other languages --------------------------------------------------------------------------------------

#: Names that ComfyUI itself translates.
COMFYUI = {"Create Video", "control after generate"}


def pieces(page: str) -> list[str]:
    """Headings, paragraphs, list items, images and table rows of a page, one line each."""
    return [" ".join(piece.split()) for piece in re.split(r"\n(?=\n|#|\||- )", page) if piece.strip()]


def kind(piece: str) -> str:
    """The kind of a piece: heading marks, "|||" for a row of two cells, "- " for a list item, the link of an image."""
    if piece.startswith("|"):
        return "".join(re.findall(r"\|", piece))
    picture = re.match(r"!\[[^\]]+(\]\(.*\))$", piece)
    return picture[1] if picture else re.match(r"#+ |- |\*{0,2}", piece)[0]


def side_by_side(schemas: list[Any], language: str) -> Iterator[tuple[Any, str, str]]:
    """All pieces of all pages: schema, English, translation."""
    for schema in schemas:
        pages = [DOCS / schema.node_id / f"{one}.md" for one in ("en", language)]
        english, other = (pieces(page.read_text(encoding="utf-8")) for page in pages)
        assert [kind(piece) for piece in other] == [kind(piece) for piece in english], schema.node_id
        yield from ((schema, *pair) for pair in zip(english, other, strict=True))


def emphasised(piece: str) -> list[str]:
    """Words in *italics*, except captions, which are all italics."""
    return [] if re.fullmatch(r"\*[^*]+\*", piece) else re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", piece)


def cell(row: str) -> str:
    return row.split("|")[1].strip()


@pytest.mark.parametrize("language", TRANSLATIONS)
class TestHelpTranslation:
    def test_pages_exist(self, schemas: list[Any], language: str) -> None:
        assert {path.parent.name for path in DOCS.glob(f"*/{language}.md")} == {one.node_id for one in schemas}

    def test_structure_matches_english(self, schemas: list[Any], language: str) -> None:
        assert len(list(side_by_side(schemas, language))) > 300  # side_by_side compares the structure

    def test_numbers_paths_and_code_match(self, schemas: list[Any], language: str) -> None:
        ids = {one.id for schema in schemas for _, one in inputs(schema.inputs)}  # translated in the page
        for schema, english, other in side_by_side(schemas, language):
            expected, found = (literals(text) for text in (english, other))
            wrong = [word for word in expected | found if word not in ids and expected[word] != found[word]]
            assert wrong == [], f"{schema.node_id}: {other}"
            assert re.findall("`[^`]+`", other) == re.findall("`[^`]+`", english), schema.node_id

    def test_all_inputs_and_outputs_are_listed(self, schemas: list[Any], language: str) -> None:
        # Error messages use the input id, so the table shows both.
        names = read(language)
        headings = {english: other for _, english, other in side_by_side(schemas, language) if english[:3] == "## "}
        for schema in schemas:
            page, called = (DOCS / schema.node_id / f"{language}.md").read_text(encoding="utf-8"), names[schema.node_id]
            assert page.startswith(f"# {called['display_name']}\n"), schema.node_id
            own = {one.id: called["inputs"][key]["name"] for key, one in inputs(schema.inputs)}
            left, right = "（）" if language == "zh" else (" (", ")")
            shown = [name if name == key else f"{name}{left}{key}{right}" for key, name in own.items()]
            assert sorted(rows(page, headings["## Inputs"][3:])) == sorted(shown), schema.node_id
            outputs = [one["name"] for one in called["outputs"].values()]
            assert rows(page, headings["## Outputs"][3:]) == outputs, schema.node_id

    def test_row_order_matches_english(self, schemas: list[Any], language: str) -> None:
        names = read(language)
        for schema, english, other in side_by_side(schemas, language):
            called = {one.id: names[schema.node_id]["inputs"][key]["name"] for key, one in inputs(schema.inputs)}
            if english.startswith("|") and cell(english) in called and cell(english) not in SAME:
                own = called[cell(english)]
                # The name of an output may equal an input id.
                results = {one["name"] for one in names[schema.node_id]["outputs"].values()}
                assert cell(other).startswith(own) or cell(other) in results, f"{schema.node_id}: {other}"

    def test_headings_are_consistent(self, schemas: list[Any], language: str) -> None:
        heads = {(english, other) for _, english, other in side_by_side(schemas, language) if english[:3] == "## "}
        assert len({english for english, _ in heads}) == len({other for _, other in heads}) == len(heads)

    def test_literal_words_are_unchanged(self, schemas: list[Any], language: str) -> None:
        # Options, messages and the curves of Plot StyleGAN Training are English in every language.
        names: dict[str, set[str]] = {}
        translated = read(language)
        for schema in schemas:
            for key, one in inputs(schema.inputs):
                names.setdefault(one.id, set()).add(translated[schema.node_id]["inputs"][key]["name"])
        for schema, english, other in side_by_side(schemas, language):
            for word in emphasised(english):
                if word in names:  # Russian words are inflected
                    assert any(name[:3].lower() in other.lower() for name in names[word]), f"{schema.node_id}: {word}"
                else:
                    assert word in other or word in COMFYUI, f"{schema.node_id}: {word}"
            quoted = [name for name in UNTRANSLATED if name in english]
            assert [name for name in quoted if name not in other] == [], f"{schema.node_id}: {other}"

    def test_node_names_are_consistent(self, schemas: list[Any], language: str) -> None:
        names = read(language)
        for schema, english, other in side_by_side(schemas, language):
            for one in schemas:
                title, called = short(one.display_name), short(names[one.node_id]["display_name"])
                if f"**{title}**" in english:
                    assert f"**{called}**" in other, f"{schema.node_id} does not call {title} {called}"
                elif title in english:
                    assert called in other, f"{schema.node_id} does not call {title} {called}"

    def test_terms_are_consistent(self, schemas: list[Any], language: str) -> None:
        wrong = []
        for schema, english, other in side_by_side(schemas, language):
            prose = re.sub(r"`[^`]*`|(?<!\*)\*[^*]+\*(?!\*)|\b\w+_\w+", "", english)  # neither code nor messages
            wrong += missing_terms(schema.node_id, prose, other, language)
        assert wrong == []


def test_chinese_has_no_line_breaks_within_paragraphs() -> None:
    # Markdown turns a line break into a space.
    for path in DOCS.glob("*/zh.md"):
        assert not re.search(r"[^\x00-\x7f]\n[^\x00-\x7f\n]", path.read_text(encoding="utf-8")), path.parent.name
