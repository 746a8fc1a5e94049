"""Which drains of nodes are news."""

from __future__ import annotations

import pytest

from launcher.runtime.cluster.node_drains import NodeDrain, news

pytestmark = pytest.mark.unit
NOW_S = 1_700_000_000.0
SOON_MS = int((NOW_S + 30) * 1000)


def test_a_new_drain_is_told_with_the_seconds_that_are_left() -> None:
    assert news({}, {"a": SOON_MS}, now_s=NOW_S) == (NodeDrain("a", 30.0),)


def test_a_known_drain_is_told_again_only_with_another_deadline() -> None:
    assert news({"a": SOON_MS}, {"a": SOON_MS}, now_s=NOW_S) == ()
    assert news({"a": SOON_MS}, {"a": SOON_MS - 10_000}, now_s=NOW_S) == (NodeDrain("a", 20.0),)


def test_no_deadline_and_a_passed_one_are_told_apart() -> None:
    assert news({}, {"a": 0, "b": 1000}, now_s=NOW_S) == (NodeDrain("a", None), NodeDrain("b", 0.0))


def test_a_node_that_is_gone_is_no_news_until_it_is_drained_again() -> None:
    assert news({"a": SOON_MS}, {}, now_s=NOW_S) == ()
    assert news({}, {"a": SOON_MS}, now_s=NOW_S) != ()


def test_a_drain_is_told_in_words() -> None:
    assert NodeDrain("0123456789abcdef", 30.0).detail == "Ray drains node 0123456789ab within 30 s"
    assert NodeDrain("0123456789abcdef", None).detail == "Ray drains node 0123456789ab without a deadline"
