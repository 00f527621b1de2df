"""Settings classes: what their constructors refuse, and how they describe themselves."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.latents.inversion import InvertConfig
from nada_core.latents.pivotal_tuning import TuneConfig
from nada_core.latents.text_edit import TextEditConfig
from nada_core.runtime.config import describe, setting, settings


@settings
class Inner:
    steps: int = setting(4, "inner steps", low=1)


@settings
class Config:
    steps: int = setting(300, "steps", low=1, high=10_000)
    lr: float = setting(0.002, "learning rate", low=0.0, step=1e-4)
    ema: bool = setting(False, "keep a moving average")
    mode: str = setting("all", "which layers", choices=("all", "named", "adaptive"))
    note: str | None = setting(None, "anything")
    limit: float | None = setting(None, "a limit", low=0.0)
    names: tuple[str, ...] = setting((), "layer names")
    terms: dict[str, float] = setting({"direction": 1.0}, "weights", low=0.0, choices=("direction", "global"))
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.mode == "named" and not self.names:
            raise ValueError("Config.names is empty.")


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
        {"lr": True},
        {"lr": "fast"},
        {"ema": 1},
        {"mode": "al"},
        {"mode": 3},
        {"mode": None},
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
        {"inner": 3},
        {"inner": {"steps": 3}},
        {"stps": 3},
    ],
)
def test_constructor_refuses_a_wrong_value_by_name(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^Config\.{name}\b.* is "):
        Config(**wrong)


def test_refusal_names_the_value_what_was_expected_and_the_nearest_choice() -> None:
    with pytest.raises(
        ValueError, match=r"Config\.mode is 'adaptve', expected .*all, named, adaptive.*mean adaptive\?"
    ):
        Config(mode="adaptve")
    with pytest.raises(ValueError, match=r"Config\.steps is 0, expected .*from 1 to 10000"):
        Config(steps=0)
    with pytest.raises(ValueError, match=r"Config\.terms is \{'directoin': 1.0\}.*mean direction\?"):
        Config(terms={"directoin": 1.0})


def test_refusal_names_every_wrong_field() -> None:
    with pytest.raises(ValueError, match=r"Config\.steps is 0.*Config\.lr is -1\.0"):
        Config(steps=0, lr=-1.0)


def test_rules_between_fields_raise_their_own_message() -> None:
    with pytest.raises(ValueError, match=r"^Config\.names is empty\.$"):
        Config(mode="named")
    with pytest.raises(ValueError, match=r"^Config\.names is empty\.$"):
        dataclasses.replace(Config(), mode="named")


def test_constructor_accepts_values_at_their_limits() -> None:
    config = Config(steps=1, lr=1, note="x", limit=0.0, names=("b4",), terms={"global": 0.3}, inner=Inner(steps=1))
    assert (config.lr, config.note, config.limit, config.inner.steps) == (1.0, "x", 0.0, 1)
    assert Config(steps=10_000).steps == 10_000


def test_dict_defaults_are_not_shared() -> None:
    one, two = Config(), Config()
    one.terms["global"] = 1.0
    assert two.terms == {"direction": 1.0} == Config().terms


def test_settings_are_frozen_dataclasses() -> None:
    config = Config(steps=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 6  # type: ignore[misc]
    assert dataclasses.replace(config, lr=0.1) == Config(steps=5, lr=0.1) != config
    assert dataclasses.asdict(config)["inner"] == {"steps": 4} and dataclasses.asdict(config)["steps"] == 5
    assert copy.copy(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="steps is 0"):
        dataclasses.replace(config, steps=0)


def test_description_is_in_order_and_skips_nested_classes() -> None:
    items = {item.name: item for item in describe(Config)}
    assert list(items) == ["steps", "lr", "ema", "mode", "note", "limit", "names", "terms"]
    steps = items["steps"]
    assert (steps.kind, steps.low, steps.high, steps.default, steps.help) == (int, 1, 10_000, 300, "steps")
    assert items["note"].optional and items["note"].kind is str and not items["mode"].optional
    assert items["names"].kind is tuple and items["terms"].kind is dict and items["terms"].default == {"direction": 1.0}
    assert items["lr"].step == 1e-4 and items["mode"].choices == ("all", "named", "adaptive")
    assert (steps.limits, items["lr"].limits, items["mode"].limits) == (" from 1 to 10000", " of at least 0", "")


@pytest.mark.parametrize("cls", [AdaptConfig, LayerChoice, InvertConfig, TuneConfig, TextEditConfig])
def test_defaults_of_every_settings_class_are_allowed_values(cls: type) -> None:
    items = describe(cls)
    assert cls(**{item.name: item.default for item in items}) == cls()
    for item in items:
        assert item.help and item.default is not None or item.optional
        if item.low is not None and item.kind in (int, float):
            with pytest.raises(ValueError, match=rf"{cls.__name__}\.{item.name} is "):
                cls(**{item.name: item.kind(item.low - 1)})
