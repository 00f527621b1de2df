"""A study of settings by Optuna (Akiba et al., arXiv:1907.10902), which several workers may share.

A tree-structured Parzen estimator (Bergstra et al. 2011) proposes settings, and asynchronous successive halving (Li et
al., arXiv:1810.05934) ends trials that are behind. The first trial has the settings to start from, so that the result
is never worse. Workers write a sign of life to their trials; the trial of a worker that was killed is queued again.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from .config import AdaptConfig
from .search_space import SearchConfig, Space
from .trials import Measured

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_STARTUP = 5  # trials before the Parzen estimator begins
_BEAT, _STALE, _POLL = 10.0, 60.0, 1.0  # seconds: between two signs of life, after which a worker is dead, of waiting
_ATTEMPTS = 3  # of a trial that fails or whose workers die

#: Runs one trial: its number, settings, and a function that reports the figures of a check and answers whether the
#: trial is behind. Returns what it reached.
Evaluate = Callable[[int, AdaptConfig, Callable[[int, Measured], bool]], Measured]


def open_study(name: str, storage: str | Path | None) -> Study:
    """Open or create a study. storage: a journal file, the URL of a database, or None for memory."""
    try:
        import optuna
        from optuna.exceptions import UpdateFinishedTrialError  # noqa: F401 - new in Optuna 4.3
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise ValueError(
            f"The search needs Optuna 4.3 or newer, which is not installed ({error}). Install it with "
            "`pip install --upgrade optuna`."
        ) from error

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    place: Any = storage
    try:
        if storage is not None and "://" not in str(storage):
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            file = os.fspath(storage)
            place = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))  # works on Windows and NFS
        return optuna.create_study(
            study_name=name, storage=place, direction="maximize", load_if_exists=True, pruner=pruner
        )
    except Exception as error:  # of any database driver
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Got the storage {storage}, which cannot be opened ({reason}). Name a new file, or the URL of a database "
            "whose driver is installed, such as sqlite:///study.db."
        ) from error


def run_trials(
    study: Study,
    space: Space,
    evaluate: Evaluate,
    config: SearchConfig,
    seed: int,
    on_wait: Callable[[], None] | None = None,
) -> None:
    """Run trials until all workers together have finished `config.trials`, or the time is over."""
    deadline = time.monotonic() + (60 * config.minutes or math.inf)
    study.enqueue_trial(space.base_params, {"is_base": True}, skip_if_exists=True)
    while True:
        _retry_lost_trials(study)
        counts = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
        finished = counts["COMPLETE"] + counts["PRUNED"]
        if finished >= config.trials or time.monotonic() >= deadline:
            return
        if finished + counts["RUNNING"] < config.trials:
            _run_trial(study, space, evaluate, seed)
        else:  # another worker may die with the last trial
            time.sleep(_POLL)
            if on_wait is not None:
                on_wait()


def _run_trial(study: Study, space: Space, evaluate: Evaluate, seed: int) -> None:
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    trial, started, is_behind = study.ask(), time.monotonic(), False
    # A seed for each trial, of a number that no other worker has: equal seeds would propose equal settings.
    study.sampler = TPESampler(n_startup_trials=_STARTUP, seed=(seed + trial.number) % 2**32)
    space.suggest(trial)

    def check(number: int, measured: Measured) -> bool:
        nonlocal is_behind
        trial.report(measured.score, number)
        is_behind = not trial.user_attrs.get("is_base") and trial.should_prune()
        return is_behind

    try:
        with _signs_of_life(trial):
            measured = evaluate(trial.number, space.config(trial.params), check)
        if not math.isfinite(measured.score):
            raise FloatingPointError(f"The score is {measured.score}.")
        for key, value in {**measured.as_row(), "seconds": time.monotonic() - started}.items():
            trial.set_user_attr(key, value)
        study.tell(trial, None if is_behind else measured.score, TrialState.PRUNED if is_behind else None)
    except FloatingPointError as error:  # the settings diverge: a result, too
        trial.set_user_attr("diverged", str(error))
        study.tell(trial, state=TrialState.PRUNED)
    except UpdateFinishedTrialError:
        return  # this worker was silent for so long that another one has queued the trial again
    except BaseException as error:
        is_failure = isinstance(error, ValueError | RuntimeError | OSError | MemoryError)  # others are interruptions
        _queue_again(study, trial, trial.user_attrs.get("attempt", 1) + is_failure)
        raise


@contextmanager
def _signs_of_life(trial: Trial) -> Iterator[None]:
    """Write the time to the trial again and again."""
    from optuna.exceptions import UpdateFinishedTrialError

    over = Event()

    def beat() -> None:
        with suppress(UpdateFinishedTrialError):
            while not over.wait(_BEAT):
                trial.set_user_attr("alive", time.time())

    trial.set_user_attr("alive", time.time())
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _retry_lost_trials(study: Study) -> None:
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING" and trial.datetime_start is not None:
            alive = trial.user_attrs.get("alive", trial.datetime_start.timestamp())
            if abs(time.time() - alive) > _STALE:  # in the future: the clock was set back
                _queue_again(study, trial, trial.user_attrs.get("attempt", 1) + 1)


def _queue_again(study: Study, trial: Trial | FrozenTrial, attempt: int) -> None:
    """Fail a running trial, and queue its settings again unless they have failed too often."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with suppress(ValueError, UpdateFinishedTrialError):  # another worker was first
        study.tell(trial.number, state=TrialState.FAIL)
        if attempt <= _ATTEMPTS:
            kept = {name: value for name, value in trial.user_attrs.items() if name == "is_base"}
            study.enqueue_trial(dict(trial.params), {**kept, "attempt": attempt})
