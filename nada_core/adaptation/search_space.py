"""What a search of settings varies, and in which ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..guidance.clip_losses import TERMS
from ..runtime.config import setting, settings
from .config import AdaptConfig

if TYPE_CHECKING:
    from optuna import Trial

#: Upper end of the weights that may be searched; the lower end is 0.
_WEIGHTS = {"angle": 1.0, "relation": 100.0, "covariance": 20.0, "lpips": 1.0, "id": 1.0, "weight_reg": 10.0}


@settings
class SearchConfig:
    """What a search varies, and when it ends."""

    trials: int = setting(20, "finished trials of the study, by all of its workers together", low=1, high=10_000)
    minutes: float = setting(
        0.0, "minutes after which no further trial starts; 0: no limit", low=0.0, high=100_000.0, step=1.0
    )
    over: tuple[str, ...] = setting(
        ("lr", "steps", "layers", "covariance"),
        "settings to search: lr, steps, layers (all, or adaptive with a count), and weights of losses",
        choices=("lr", "steps", "layers", *_WEIGHTS),
    )

    def __post_init__(self) -> None:
        if not self.over:
            raise ValueError("SearchConfig.over is empty; name at least one setting to search, such as lr.")


@dataclass(frozen=True)
class Space:
    """The settings a search may propose, around those to start from.

    Attributes:
        num_layers: number of layers that adaptive layer freezing chooses from; one more stands for mode all.
    """

    base: AdaptConfig
    over: tuple[str, ...]
    num_layers: int

    def __post_init__(self) -> None:
        if "layers" in self.over and self.base.layers.mode == "named":
            raise ValueError(
                "Got layers to search with LayerChoice.mode named; choose all or adaptive, or omit layers."
            )
        self.config({name: _WEIGHTS[name] for name in self.over if name in _WEIGHTS})  # fails here, not in a trial

    @property
    def base_params(self) -> dict[str, Any]:
        base, layers = self.base, self.base.layers
        count = self.num_layers + 1 if layers.mode == "all" else layers.count
        known = {"lr": base.lr, "steps": base.steps, "layers": count}
        return {name: known[name] if name in known else self._weight(name) for name in self.over}

    def _weight(self, name: str) -> float:
        return float(self.base.terms.get(name, 0.0) if name in TERMS else getattr(self.base, name))

    def distributions(self) -> dict[str, Any]:
        """The ranges of all parameters."""
        from optuna.distributions import FloatDistribution, IntDistribution

        base, made = self.base, dict[str, Any]()
        for name in self.over:
            if name == "lr":
                made[name] = FloatDistribution(max(base.lr / 4, 1e-7), min(base.lr * 4, 1.0), log=True)
            elif name == "steps":
                made[name] = IntDistribution(-(-base.steps // 2), max(base.steps, base.steps * 3 // 2))
            elif name == "layers":
                made[name] = IntDistribution(1, self.num_layers + 1)
            else:
                made[name] = FloatDistribution(0.0, max(_WEIGHTS[name], 2 * self._weight(name)))
        return made

    def suggest(self, trial: Trial) -> None:
        """Let the sampler of a trial's study choose all parameters; they are then in `trial.params`."""
        from optuna.distributions import IntDistribution

        for name, values in self.distributions().items():
            if isinstance(values, IntDistribution):
                trial.suggest_int(name, values.low, values.high)
            else:
                trial.suggest_float(name, values.low, values.high, log=values.log)

    def config(self, params: Mapping[str, Any]) -> AdaptConfig:
        """Return the settings of a trial; those of `base_params` are the base itself."""
        changes = {name: value for name, value in params.items() if name != "layers" and name not in TERMS}
        terms = self.base.terms | {name: value for name, value in params.items() if name in TERMS}
        changes["terms"] = {name: weight for name, weight in terms.items() if weight or name not in params}
        if (count := params.get("layers")) is not None:
            mode = {"mode": "all"} if count > self.num_layers else {"mode": "adaptive", "count": count}
            changes["layers"] = replace(self.base.layers, **mode)
        return replace(self.base, **changes)

    def describe(self, params: Mapping[str, Any]) -> str:
        """Name the parameters of a trial, such as "lr 0.02, steps 300, layers all"."""
        names = {"layers": "all"} if params.get("layers", 0) > self.num_layers else {}
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in params.items()} | names
        return ", ".join(f"{name} {value}" for name, value in shown.items())
