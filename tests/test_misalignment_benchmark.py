"""The journal and the summary of `benchmarks.misalignment`, on fabricated rows."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.misalignment import main, plan
from benchmarks.misalignment_page import (
    Condition,
    Rows,
    by_condition,
    comparisons,
    first_reaching,
    gains,
    matched,
    mean_rank,
    overview,
    p_value,
    page,
    paired,
)
from benchmarks.misalignment_rows import (
    ALONE,
    BY_CAPTIONS,
    BY_PAIRS,
    CAPTIONS,
    METHODS,
    ORACLES,
    Job,
    Journal,
    further_weights,
    key,
)

KEYS = [f"row {index}" for index in range(40)]


def test_every_row_is_claimed_once_by_workers_that_share_a_journal(tmp_path: Path) -> None:
    def take_all(worker: int) -> list[str]:
        journal, taken = Journal(tmp_path / "rows.jsonl", stale=60), []
        while (free := journal.claim(KEYS)) is not None:
            journal.finish(free, {"worker": worker})
            taken.append(free)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [key for part in pool.map(take_all, range(4)) for key in part]
    assert sorted(taken) == sorted(KEYS)
    assert set(Journal(tmp_path / "rows.jsonl", stale=60).rows()) == set(KEYS)


def test_claims_without_a_row_expire_and_cut_off_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, stale=60)
    journal.finish("a", {"judge": 1.0})
    assert journal.claim(["a", "b"]) == "b" and journal.claim(["a", "b"]) is None
    assert Journal(path, stale=0).claim(["a", "b"]) == "b"
    with path.open("a") as file:
        file.write(json.dumps({"key": "c", "time": 0, "row": {"judge": 0.5}})[:-9])  # killed while it wrote
    journal.finish("d", {"judge": 0.25})
    assert journal.rows() == {"a": {"judge": 1.0}, "d": {"judge": 0.25}}
    assert journal.claim(["c"]) == "c"


def test_rows_without_a_needed_value_are_run_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    old, journal = Journal(path, stale=60), Journal(path, stale=60, needs="path")
    old.finish("a", {"judge": 1.0})
    old.finish("b", {"judge": 1.0, "path": []})
    assert old.claim(["a", "b"]) is None
    assert journal.claim(["a", "b"]) == "a" and journal.claim(["a", "b"]) is None
    journal.finish("a", {"judge": 0.5, "path": []})
    assert Journal(path, stale=0, needs="path").claim(["a", "b"]) is None and journal.rows()["a"]["judge"] == 0.5


def test_keys_differ_in_everything_that_changes_a_row() -> None:
    job = Job("joker", 0, 0.1, 0.0, "recipe")
    others = [job._replace(**change) for change in ({"seed": 1}, {"leak": 0.2}, {"noise": 0.4}, {"target": "elf"})]
    others += [job._replace(method=method) for method in METHODS if method != "recipe"]
    further = {**dict.fromkeys([*BY_CAPTIONS, *BY_PAIRS], "caption guide"), "short recipe all guides": "held-out guide"}
    further |= dict.fromkeys(ALONE, "first guide")
    keys = {key(other, "weights", further) for other in (job, *others)} | {key(job, "other weights", further)}
    assert len(keys) == len(others) + 2
    (captions, *_) = BY_CAPTIONS
    assert key(job._replace(method=captions), "weights", further | {captions: "other"}) not in keys


def test_claim_of_the_future_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was set back after a worker had claimed a row and ended."""
    journal, now = Journal(tmp_path / "rows.jsonl", stale=60), time.time()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: now + 10**6)
        assert journal.claim(["a"]) == "a" and journal.claim(["a"]) is None
    assert journal.claim(["a"]) == "a" and journal.claim(["a"]) is None


def test_keys_of_stored_rows_stay(tmp_path: Path) -> None:
    settings = (
        "{'batch': 4, 'beta2': 0.99, 'layers': {'batch': 4, 'count': 5, 'every': 4, 'rgb': True}, 'lr': 0.015, "
        "'mirror': True, 'noise': 'const', 'pool': 100, 'schedule': 'cosine', 'steps': 100, "
        "'terms': {'direction': 1.0, 'angle': 0.25}, 'views': 1}"
    )
    job = Job("joker", 0, 0.1, 0.0, "short recipe")
    assert key(job, "weights", further_weights(tmp_path)) == f"joker|0|0.1|0|{settings}|weights"


def test_caption_methods_depend_on_the_guide_of_their_rows(tmp_path: Path) -> None:
    before = further_weights(tmp_path)
    (tmp_path / f"{CAPTIONS}.safetensors").write_bytes(b"weights")
    after = further_weights(tmp_path)
    assert {method for method in after if after[method] != before[method]} == {*BY_CAPTIONS, *BY_PAIRS}


def test_caption_methods_are_refused_without_their_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["misalignment", "--methods", "recipe", "paper captions", "--runs", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert "paper captions need" in error and "--fit-captions" in error and not (tmp_path / "rows.jsonl").exists()


def test_a_fitted_caption_guide_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = tmp_path / f"{CAPTIONS}.safetensors"
    guide.write_bytes(b"weights")
    monkeypatch.setattr("sys.argv", ["misalignment", "--fit-captions", "0.001", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert guide.read_bytes() == b"weights"


def figures(job: Job, kept: float, noise: random.Random) -> dict[str, Any]:
    measured = {"portraits-64": {"total": job.leak, "leak": job.leak, "noise": job.noise}}
    kept += noise.gauss(0, 0.005)
    row = {"judge": 1.0, "attributes": kept, "source_attributes": 1.0, "distance": 0.05, "source_distance": 0.1}
    return {**row, "diversity": 0.9, "kept": kept, "job": list(job), "measured": measured}


@pytest.fixture
def rows() -> Rows:
    """Four layers keep .05 more attributes where there is a leak, and equally many without."""
    noise, rows = random.Random(0), {}
    for target in ("joker", "zombie", "elf"):
        for seed in range(3):
            for leak in (0.0, 0.1):
                for method, kept in (("recipe", 0.9 - leak), ("recipe k=4", 0.9 - leak / 2)):
                    job = Job(target, seed, leak, 0.0, method)
                    rows[job] = figures(job, kept, noise)
    return rows


def test_summary_finds_a_planted_difference(rows: Rows) -> None:
    groups = by_condition(rows)
    assert list(groups)[:2] == [Condition("recipe", 0.0, 0.0), Condition("recipe k=4", 0.0, 0.0)]
    assert mean_rank(groups, Condition("recipe", 0.1, 0.0)) == "2.0 of 2"
    (line,) = (line for line in paired(rows) if line.startswith("| recipe k=4, leak 0.1 | recipe, leak 0.1 |"))
    assert "| 9 |" in line
    change, p = line.split("|")[5].split("(p")
    assert float(change) == pytest.approx(0.05, abs=0.01) and float(p.strip(" )")) < 0.01
    assert p_value([0.0] * 9) == 1 and p_value([0.1, -0.1, 0.2, -0.2, 0.1, -0.1]) > 0.5


def test_methods_are_compared_where_they_reach_equal_quality(rows: Rows) -> None:
    """The slower method keeps more after equal steps, and equally much at equal quality."""
    rows = {job: row for job, row in rows.items() if job.leak}
    for job, row in rows.items():
        steps = (10, 20, 40) if job.method == "recipe" else (20, 40, 80)
        points = zip(steps, (0.0, 0.8, 1.0), (1.0, 0.9, 0.7), strict=True)
        own = {name: value for name, value in row.items() if isinstance(value, float)}
        row["path"] = [{**own, "steps": step, "judge": judge, "kept": kept} for step, judge, kept in points]
    found = first_reaching(rows[Job("joker", 0, 0.1, 0.0, "recipe")]["path"], 0.9)
    assert found is not None and found["steps"] == pytest.approx(30) and found["kept"] == pytest.approx(0.8)
    (line,) = (line for line in matched(rows) if line.startswith("| recipe k=4, leak 0.1 | recipe, leak 0.1 | 9 |"))
    assert line.split("|")[4].split() == ["+0.000", "(p", "1.000)"]
    rows[Job("elf", 0, 0.1, 0.0, "recipe")]["path"][-1]["judge"] = 0.85
    assert any("| recipe, leak 0.1 | 8 |" in line for line in matched(rows))


def test_changed_recipes_do_not_enter_the_ranks_of_the_main_methods(rows: Rows) -> None:
    job = Job("joker", 0, 0.1, 0.0, "short recipe + relation")
    more = {
        **rows,
        job: figures(job, 0.99, random.Random(0)),
        **{
            (short := job._replace(seed=seed, method="short recipe")): figures(short, 0.9, random.Random(0))
            for seed in range(2)
        },
    }
    groups = by_condition(more)
    assert mean_rank(groups, Condition("recipe", 0.1, 0.0)) == "2.0 of 2"
    assert mean_rank(groups, Condition(job.method, 0.1, 0.0)) == "-"
    (line,) = (line for line in paired(more) if line.startswith("| short recipe + relation, leak 0.1 |"))
    assert "| short recipe, leak 0.1 | 1 |" in line and "+0.090" in line


def test_summary_compares_only_rows_of_equal_target_and_seed(rows: Rows) -> None:
    lost = Job("elf", 2, 0.1, 0.0, "recipe")
    del rows[lost]
    lines = [line for line in paired(rows) if "| 8 |" in line]
    assert len(lines) == 2  # against four layers at this leak, and against no leak
    assert sum("| 8 |" in line for line in overview(rows)) == 1


def test_comparisons_differ_in_one_thing() -> None:
    conditions = [Condition(m, leak, noise) for m in METHODS for leak, noise in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.4))]
    for one, other in comparisons(conditions):
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_plan_holds_whole_comparisons_first_and_oracles_once() -> None:
    jobs = plan(["joker", "elf"], [0, 1], [0.0, 0.1], [0.0, 0.4], ["recipe", "oracle"])
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs) and len(set(jobs)) == len(jobs)
    assert len(jobs) == 2 * 2 * (4 + 1) and {job[2:4] for job in jobs if job.method in ORACLES} == {(0.0, 0.0)}


def test_gain_is_the_share_of_the_oracles() -> None:
    oracle = {("elf", 0): {"distance": 0.02, "source_distance": 0.1}}
    assert gains({("elf", 1): {"distance": 0.06, "source_distance": 0.1}}, oracle) == "0.50"
    assert gains(oracle, oracle) == "1.00" and gains({("joker", 0): {}}, oracle) == "-"


def test_page_lists_every_row_and_nothing_else(rows: Rows) -> None:
    text = page(rows, ["joker.jpg"])
    assert text.count("| joker |") == 4 and "watercolor" not in text and "| 0.1 | 0 | 0.100 | 0.100 to 0.100" in text
    assert "paper" not in text.split("## Paired differences")[1]
