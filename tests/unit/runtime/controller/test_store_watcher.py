"""What others write into the store is told once, a higher term until somebody acts on it."""

from __future__ import annotations

import pytest

from launcher.core.errors import StoreDamaged
from launcher.core.types import Term
from launcher.runtime.controller.inbox import DesiredChanged, HigherTermSeen
from launcher.runtime.controller.store_watcher import StoreWatcher
from tests.unit.runtime.controller.harness import Harness, desired

pytestmark = pytest.mark.unit


@pytest.fixture
def watcher(harness: Harness) -> StoreWatcher:
    return StoreWatcher(harness.run, harness.leadership, harness.inbox)


def test_nothing_new_is_no_news(harness: Harness, watcher: StoreWatcher) -> None:
    watcher.look()
    assert harness.items() == []


def test_a_new_revision_of_the_desired_state_is_told_once(harness: Harness, watcher: StoreWatcher) -> None:
    newer, newest = desired(1, 8, 4, revision=2), desired(1, 8, 6, revision=3)
    for wanted in (newer, newest):
        harness.run.create_desired(wanted)
    watcher.look()
    watcher.look()
    assert harness.items() == [DesiredChanged(newest)]


def test_a_higher_term_is_told_at_every_look(harness: Harness, watcher: StoreWatcher) -> None:
    harness.run.claim_term("somebody else", "later")
    watcher.look()
    watcher.look()
    assert harness.items() == [HigherTermSeen(), HigherTermSeen()]


def test_a_term_that_the_controller_has_begun_itself_is_none_of_others(harness: Harness, watcher: StoreWatcher) -> None:
    harness.leadership.begin_term(harness.run.claim_term("me", "later"), harness.leadership.inherited)
    watcher.look()
    assert (harness.items(), harness.leadership.term) == ([], Term(2))


def test_a_desired_state_that_is_not_whole_raises(harness: Harness, watcher: StoreWatcher) -> None:
    harness.store.put(harness.run.key("desired/000000000002.json"), b'{"state": "running"}')
    with pytest.raises(StoreDamaged):
        watcher.look()
