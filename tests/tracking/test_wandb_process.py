"""W&B in its own process: whatever it does, calls return, reports tell, and nothing of it remains."""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.core.clock import ManualClock
from launcher.tracking import wandb_sink
from launcher.tracking.sinks import SLOW_START_S, WandbProcess
from launcher.tracking.wandb_messages import Start, to_line
from launcher.tracking.wandb_sink import serve

pytestmark = pytest.mark.distributed

RECORDER = """
    import json, os
    class Settings(dict): pass
    class Run:
        url = "http://host/run"
        def __init__(self, **options):
            self.dir = options["dir"] + "/offline-run/files"
            self.file = open(os.environ["RECORD"], "a")
            self.say("init", {k: v for k, v in options.items() if k != "settings"})
        def say(self, *what):
            self.file.write(json.dumps(what) + "\\n"); self.file.flush()
        def define_metric(self, name, **options): self.say("define", name, options)
        def log(self, row): self.say("log", row)
        def finish(self, exit_code): self.say("finish", exit_code)
    def login(prompt): return "WANDB_API_KEY" in os.environ
    def init(**options):
        print("noise on standard output")
        return Run(**options)
"""


class Fake:
    """A wandb module of our own on the path of the process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.record = folder / "record.jsonl"
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("RECORD", str(self.record))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        self.monkeypatch = monkeypatch

    def write(self, more: str = "") -> None:
        (self.folder / "wandb.py").write_text(textwrap.dedent(RECORDER) + textwrap.dedent(more))

    def said(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def run_of(folder: Path, mode: str = "auto") -> Start:
    place = str(folder / "files")
    return Start(run_id="mlp-abc234", name="first", project="launcher", entity=None, mode=mode, folder=place, config={"seed": 1})


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def finish(tracker: WandbProcess, exit_code: int) -> None:
    tracker.finish(exit_code)
    wait_for(lambda: tracker.finished, seconds=120)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_offline_without_a_key(fake: Fake) -> None:
    fake.write()
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=60)
    tracker.metrics(10, {"loss": 1.5, "accuracy": float("nan"), "time": "2026-01-01"})
    tracker.metrics(20, {"loss": 1.0})
    finish(tracker, 3)
    (report,) = tracker.reports()
    assert (report.tracker, report.state, report.mode) == ("wandb", "started", "offline")
    assert "no key was found" in str(report.message)
    assert str(report.folder).endswith("offline-run")
    said = fake.said()
    assert said[0][1]["id"] == "mlp-abc234"
    assert said[0][1]["mode"] == "offline"
    assert [line[1] for line in said if line[0] == "log"] == [{"loss": 1.5, "step": 10}, {"loss": 1.0, "step": 20}]
    assert said[-1] == ["finish", 3]


def test_online_with_a_key_continues_the_same_run(fake: Fake) -> None:
    fake.write()
    fake.monkeypatch.setenv("WANDB_API_KEY", "k")
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=60)
    tracker.start()
    finish(tracker, 0)
    (report,) = tracker.reports()
    assert (report.mode, report.url) == ("online", "http://host/run")
    assert (fake.said()[0][1]["id"], fake.said()[0][1]["resume"]) == ("mlp-abc234", "allow")


def test_a_mode_that_is_set_asks_for_no_key(fake: Fake) -> None:
    fake.write("def login(prompt): raise RuntimeError('asked')")
    tracker = WandbProcess(run_of(fake.folder, mode="offline"), finish_timeout_s=60)
    tracker.start()
    finish(tracker, 0)
    assert [report.state for report in tracker.reports()] == ["started"]


@pytest.mark.parametrize("failing", ["init", "login"])
def test_offline_where_it_cannot_be_reached(fake: Fake, failing: str) -> None:
    fake.write(
        f"""
        working = init
        def {failing}(prompt=None, **options):
            if options.get("mode") != "offline":
                raise ConnectionError("no route to host")
            return working(**options)
        """
    )
    fake.monkeypatch.setenv("WANDB_API_KEY", "k")
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=60)
    tracker.metrics(10, {"loss": 1.0})
    finish(tracker, 0)
    (report,) = tracker.reports()
    assert (report.state, report.mode) == ("started", "offline")
    assert "no route to host" in str(report.message)
    assert ["log", {"loss": 1.0, "step": 10}] in fake.said()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("raise ImportError('broken install')", "broken install"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import sys; sys.stderr.write('core dumped\\n'); sys.stderr.flush(); import os; os._exit(7)", "exit code 7"),
    ],
)
def test_a_crash_is_reported_and_rows_are_counted(fake: Fake, behaviour: str, words: str) -> None:
    fake.write(f"def init(**options):\n    {behaviour}")
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=60)
    tracker.start()
    wait_for(tracker._ended.is_set)
    for step in range(5):
        tracker.metrics(step, {"loss": 1.0})
    finish(tracker, 0)
    failed, dropped = tracker.reports()
    assert failed.state == "failed"
    assert words in str(failed.message)
    assert (dropped.state, dropped.rows) == ("dropped", 5)


def test_a_hang_costs_the_job_only_the_time_allowed_at_the_end(fake: Fake) -> None:
    fake.write("import os, time\nopen(os.environ['RECORD'], 'w').write(str(os.getpid()))\ntime.sleep(3600)")
    clock = ManualClock()
    tracker = WandbProcess(run_of(fake.folder), queue_rows=10, finish_timeout_s=0.2, clock=clock)
    tracker.start()
    wait_for(lambda: fake.record.exists() and fake.record.read_text())
    row = {f"metric{number}": 1.0 for number in range(200)}
    for step in range(200):
        tracker.metrics(step, row)
    clock.advance(SLOW_START_S + 1)
    assert [report.state for report in tracker.reports()] == ["slow"]
    finish(tracker, 0)
    failed, dropped = tracker.reports()
    assert "did not finish" in str(failed.message)
    assert "had not started" in str(failed.message)
    assert (dropped.state, dropped.rows) == ("dropped", 200)
    wait_for(lambda: not is_alive(int(fake.record.read_text())))


def test_the_last_words_of_a_short_run_say_where_what_was_not_sent_is(fake: Fake) -> None:
    """A sync that does not come to its end: the rows are in W&B's folder, and the command that sends them is named."""
    fake.write("import time\ndef hang(self, exit_code): time.sleep(3600)\nRun.finish = hang")
    fake.monkeypatch.setenv("WANDB_API_KEY", "k")
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=0.2)
    tracker.metrics(10, {"loss": 1.0})
    assert not tracker.finished
    wait_for(lambda: fake.record.exists() and ["log", {"loss": 1.0, "step": 10}] in fake.said())
    finish(tracker, 0)
    started, failed = tracker.reports()
    assert (started.state, failed.state) == ("started", "failed")
    assert f"`wandb sync {started.folder}` sends what it holds" in str(failed.message)


def test_a_key_is_not_told_with_what_was_wrong_with_it(fake: Fake) -> None:
    fake.write("def login(prompt): raise ValueError('the key secret-of-mine is too short')")
    fake.monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    tracker = WandbProcess(run_of(fake.folder), finish_timeout_s=60)
    tracker.start()
    finish(tracker, 0)
    (report,) = tracker.reports()
    assert report.mode == "offline"
    assert "going online failed (the key *** is too short)" in str(report.message)


def test_what_never_began_has_finished(tmp_path: Path) -> None:
    tracker = WandbProcess(run_of(tmp_path))
    tracker.finish(0)
    assert tracker.finished
    assert tracker.reports() == []


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    tracker = WandbProcess(run_of(tmp_path), command=(str(tmp_path / "missing"),))
    tracker.metrics(1, {"loss": 1.0})
    finish(tracker, 0)
    assert [report.state for report in tracker.reports()] == ["failed", "dropped"]


def test_input_that_ends_without_a_word_closes_the_run_as_crashed(fake: Fake) -> None:
    fake.write()
    fake.monkeypatch.syspath_prepend(str(fake.folder))
    fake.monkeypatch.delitem(sys.modules, "wandb", raising=False)
    answers = io.StringIO()
    limits: list[float] = []
    fake.monkeypatch.setattr(wandb_sink, "_end_after", limits.append)  # it would end the tests' own process
    serve([to_line(run_of(fake.folder))], answers)
    sys.modules.pop("wandb", None)
    assert limits == [wandb_sink.ORPHAN_TIMEOUT_S]
    assert fake.said()[-1] == ["finish", 1]
    assert [json.loads(line)["state"] for line in answers.getvalue().splitlines()] == ["started", "finished"]


def test_the_real_one_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = WandbProcess(run_of(tmp_path), finish_timeout_s=90)
    for step in (10, 20, 10):
        tracker.metrics(step, {"loss": 1.0})
    finish(tracker, 0)
    (report,) = tracker.reports()
    assert (report.state, report.mode) == ("started", "offline")
    files = list(Path(str(report.folder)).glob("run-mlp-abc234.wandb"))
    assert [file.stat().st_size > 0 for file in files] == [True]
