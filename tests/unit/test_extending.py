"""docs/extending.md is run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher.config.load import compose
from launcher.training.trainer import RunOutcome
from tests.unit.training.small_jobs import Recorder, alone, trainer

pytestmark = pytest.mark.unit
PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def test_the_page_trains_a_model_data_and_task_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(files) == 6
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    [command] = re.findall(r"^```sh\n(launch train .*)\n```$", PAGE, re.MULTILINE)
    config = compose(shlex.split(command)[2:], folder=tmp_path)

    recorder = Recorder()
    made = trainer(config, recorder)
    assert made.run(alone()) is RunOutcome.FINISHED
    assert made.warm_up().fused
    assert len(recorder.records) == 80
    assert sum(recorder.losses[-5:]) / 5 < 0.1 * recorder.losses[0]
    [(_, metrics)] = recorder.evaluations
    assert metrics["absolute_error"] < 0.15
