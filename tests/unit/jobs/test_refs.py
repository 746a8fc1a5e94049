from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import jobs
from launcher.core.errors import RunNotFound, StoreDamaged
from launcher.jobs.refs import RunRef, absolute_runs

pytestmark = pytest.mark.unit


def test_a_run_is_found_by_name_id_and_unique_prefix(submit: Callable[..., RunRef], runs: Path) -> None:
    ref = submit(name="night")
    other = submit()
    for word in ("night", ref.run_id, "ni", ref.run_id[:-2]):
        assert jobs.find(word, str(runs)) == ref
    assert jobs.find(other.run_id[:-1], str(runs)) == other


def test_an_ambiguous_prefix_names_the_candidates(submit: Callable[..., RunRef], runs: Path) -> None:
    for name in ("night-1", "night-2", "day"):
        submit(name=name)
    with pytest.raises(RunNotFound, match="several runs begin with night") as caught:
        jobs.find("night", str(runs))
    assert caught.value.expected == "one of night-1, night-2"
    with pytest.raises(RunNotFound):
        jobs.find("", str(runs))


def test_an_exact_name_wins_over_longer_ones(submit: Callable[..., RunRef], runs: Path) -> None:
    short = submit(name="night")
    submit(name="night-2")
    assert jobs.find("night", str(runs)) == short


def test_an_unknown_run_is_answered_with_the_nearest(submit: Callable[..., RunRef], runs: Path) -> None:
    submit(name="night")
    with pytest.raises(RunNotFound) as caught:
        jobs.find("nihgt", str(runs))
    assert caught.value.expected == "did you mean night?"
    assert caught.value.where == str(runs)


def test_where_there_are_no_runs_nothing_is_made(runs: Path) -> None:
    for word in ("night", "../night", "a/b"):
        with pytest.raises(RunNotFound) as caught:
            jobs.find(word, str(runs))
        assert "--runs" in caught.value.next
    assert jobs.list_runs(str(runs)) == []
    assert not runs.exists()


def test_places_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_runs("./runs") == str(tmp_path / "runs")
    assert absolute_runs("s3://bucket/runs/") == "s3://bucket/runs"


def test_a_damaged_name_is_said(submit: Callable[..., RunRef], runs: Path) -> None:
    submit(name="night")
    for content in ("", "[]", "{}"):
        (runs / "names" / "night.json").write_text(content)
        with pytest.raises(StoreDamaged, match="not what was written") as caught:
            jobs.find("night", str(runs))
        assert caught.value.where == f"{runs}/names/night.json"
