"""What a notice file says, and when a process that has had SIGTERM ends itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from launcher.runtime.worker.termination_notices import Ending, NoticeFile, TerminationNotice, TerminationNotices, notice_in

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def read(content: str) -> TerminationNotice:
    return notice_in(content.encode(), "/gone", drain_s=25.0, now=NOW)


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_file_means_the_default(content: str) -> None:
    assert read(content) == TerminationNotice("notice file", 25.0, "/gone appeared and names no deadline; taken: 25 s")


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        ('{"deadline_s": 120}', 120.0),
        ('{"deadline_s": 0.5, "by": "the cloud"}', 0.5),
        ('{"deadline_s": -3}', 0.0),
        ('{"deadline": "2026-01-31T12:02:00Z"}', 120.0),
        ('{"deadline": "2026-01-31T13:02:00+01:00"}', 120.0),
        ('{"deadline": "2026-01-31T11:00:00Z"}', 0.0),
    ],
)
def test_a_deadline_is_read(content: str, seconds: float) -> None:
    assert read(content) == TerminationNotice("notice file", seconds, f"/gone grants {seconds:.0f} s")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("soon", "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("[120]", "it names no deadline"),
        ('{"seconds": 120}', "it names no deadline"),
        ('{"deadline_s": "120"}', 'deadline_s is "120", not a number of seconds'),
        ('{"deadline_s": true}', "deadline_s is true"),
        ('{"deadline_s": NaN}', "deadline_s is NaN"),
        ('{"deadline": "tomorrow"}', 'deadline is "tomorrow", not an ISO time with its zone'),
        ('{"deadline": "2026-01-31T12:02:00"}', "not an ISO time with its zone"),
        ('{"deadline": 5}', "deadline is 5"),
    ],
)
def test_what_cannot_be_read_is_the_default_and_is_said(content: str, why: str) -> None:
    notice = notice_in(content.encode("latin-1"), "/gone", drain_s=25.0, now=NOW)
    assert notice.deadline_s == 25.0
    assert why in notice.detail
    assert '{"deadline_s": 120}' in notice.detail


def test_a_file_is_told_when_it_appears_and_when_its_content_changes(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    file = NoticeFile(path, drain_s=25.0)
    assert file.look(NOW) is None
    path.touch()
    assert [notice and notice.deadline_s for notice in (file.look(NOW), file.look(NOW))] == [25.0, None]
    path.write_text('{"deadline_s": 90}')
    assert [notice and notice.deadline_s for notice in (file.look(NOW), file.look(NOW))] == [90.0, None]
    path.unlink()
    assert file.look(NOW) is None
    path.write_text('{"deadline_s": 90}')
    assert file.look(NOW) is not None, "it came back: that is news"


def test_a_file_that_cannot_be_opened_is_a_notice_all_the_same(tmp_path: Path) -> None:
    file = NoticeFile(tmp_path, drain_s=25.0)
    notice = file.look(NOW)
    assert notice is not None
    assert (notice.deadline_s, "cannot be read (Is a directory)" in notice.detail) == (25.0, True)
    assert file.look(NOW) is None


def test_nothing_ends_a_process_that_nobody_wants_to_end() -> None:
    ending = Ending(drain_s=25.0, grace_s=5.0)
    assert ending.left(1e9) is None
    ending.released(1e9)
    assert ending.left(1e9) is None


def test_a_terminated_process_has_its_deadline_and_the_grace() -> None:
    ending = Ending(drain_s=25.0, grace_s=5.0)
    assert ending.terminated(100.0)
    assert (ending.left(100.0), ending.left(129.0), ending.left(131.0)) == (30.0, 1.0, 0.0)


def test_a_second_signal_gives_no_more_time_and_is_no_news() -> None:
    ending = Ending(drain_s=25.0, grace_s=5.0)
    ending.terminated(100.0)
    assert not ending.terminated(120.0)
    assert ending.left(120.0) == 10.0


def test_a_release_leaves_the_grace_at_most() -> None:
    ending = Ending(drain_s=25.0, grace_s=5.0)
    ending.terminated(100.0)
    ending.released(102.0)
    assert ending.left(102.0) == 5.0
    late = Ending(drain_s=25.0, grace_s=5.0)
    late.terminated(100.0)
    late.released(129.0)
    assert late.left(129.0) == 1.0, "it gives no more time either"


def test_a_signal_after_the_release_is_the_end_and_no_notice() -> None:
    ending = Ending(drain_s=25.0, grace_s=5.0)
    ending.released(100.0)
    assert not ending.terminated(200.0)
    assert ending.left(200.0) == 5.0


def test_a_release_before_anything_was_installed_is_no_error() -> None:
    TerminationNotices(lambda notice: None, drain_s=25.0, notice_file=None).released()
