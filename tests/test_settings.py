"""Settings describe themselves: refusals, flags and round trips."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import pytest

from nada_core.runtime.config import add_flags, check, describe, from_flags, setting


@dataclass(frozen=True)
class Inner:
    steps: int = setting(4, "inner steps", low=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Config:
    steps: int = setting(300, "steps", low=1, high=10_000)
    lr: float = setting(0.002, "learning rate, 100% yours", low=0.0, step=1e-4)
    ema: bool = setting(False, "keep a moving average")
    mode: str = setting("all", "which layers", choices=("all", "named", "adaptive"))
    note: str | None = setting(None, "anything")
    limit: float | None = setting(None, "a limit", low=0.0)
    names: tuple[str, ...] = setting((), "layer names")
    terms: dict[str, float] = setting({"direction": 1.0}, "weights", low=0.0, choices=("direction", "global"))
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


def parse(*words: str, defaults: Config | None = None) -> Config:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config, defaults)
    return from_flags(Config, parser.parse_args(words))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 10_001},
        {"steps": 3.0},
        {"steps": True},
        {"steps": None},
        {"steps": "3"},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"lr": -1.0},
        {"lr": "fast"},
        {"ema": 1},
        {"mode": "al"},
        {"mode": 3},
        {"note": 3},
        {"limit": -1.0},
        {"names": ["b4"]},
        {"names": "b4"},
        {"names": (4,)},
        {"terms": {"direction": float("nan")}},
        {"terms": {"direction": -1.0}},
        {"terms": {"directoin": 1.0}},
        {"terms": {"direction": True}},
        {"terms": "direction=1"},
    ],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"Config\.{next(iter(wrong))} is .*expected .*\."):
        Config(**wrong)


def test_refusal_tells_got_expected_and_next_step() -> None:
    with pytest.raises(ValueError, match=r"mode is 'adaptve', expected text, one of all.*Did you mean adaptive\?"):
        Config(mode="adaptve")
    with pytest.raises(ValueError, match=r"from 1 to 10000.*default 300"):
        Config(steps=0)


def test_accepts_what_fits() -> None:
    config = Config(steps=1, lr=1, note="x", limit=0.5, names=("b4",), terms={"global": 0.3})
    assert (config.lr, config.note, config.limit) == (1, "x", 0.5)


def test_dict_defaults_are_not_shared() -> None:
    one, two = Config(), Config()
    one.terms["global"] = 1.0
    assert two.terms == {"direction": 1.0}


def test_describe_is_in_order_and_skips_nested() -> None:
    told = {item.name: item for item in describe(Config)}
    assert list(told) == ["steps", "lr", "ema", "mode", "note", "limit", "names", "terms"]
    assert (told["steps"].kind, told["steps"].low, told["steps"].high, told["steps"].default) == (int, 1, 10_000, 300)
    assert told["note"].optional and told["note"].kind is str
    assert told["lr"].step == 1e-4
    assert told["mode"].choices == ("all", "named", "adaptive")


def test_no_flags_means_defaults() -> None:
    assert parse() == Config()
    assert parse(defaults=Config(steps=7)) == Config(steps=7)


def test_flags_round_trip() -> None:
    config = parse(
        "--steps=5",
        "--lr",
        "0.1",
        "--ema",
        "--mode=named",
        "--note=hi",
        "--limit=2",
        "--names=b4, b8",
        "--terms=direction=1,global=0.3",
    )
    assert config == Config(
        steps=5,
        lr=0.1,
        ema=True,
        mode="named",
        note="hi",
        limit=2.0,
        names=("b4", "b8"),
        terms={"direction": 1.0, "global": 0.3},
    )
    assert parse("--no-ema", "--note=none", "--names=none", defaults=config) == Config(
        steps=5, lr=0.1, mode="named", limit=2.0, terms={"direction": 1.0, "global": 0.3}
    )


def test_prefix_keeps_equal_names_apart() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    add_flags(parser, Inner, prefix="inner")
    namespace = parser.parse_args(["--steps=9", "--inner-steps=2"])
    assert from_flags(Config, namespace).steps == 9
    assert from_flags(Inner, namespace, prefix="inner").steps == 2


@pytest.mark.parametrize("words", [["--steps=many"], ["--steps=0"], ["--mode=al"], ["--terms=direction"], ["--lr=nan"]])
def test_bad_flags_stop_with_what_was_expected(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert "expected" in capsys.readouterr().err


def test_help_shows_default_and_limits() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    text = " ".join(parser.format_help().split())
    assert "steps (default 300, from 1 to 10000)" in text
    assert "learning rate, 100% yours (default 0.002, of at least 0)" in text
    assert "(default direction=1, of at least 0)" in text
    assert "{all,named,adaptive}" in text
