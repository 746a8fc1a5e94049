"""Whether a controller still leads, as far as the store says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.core.errors import StoreUnavailable
from launcher.core.exit_codes import ExitCode
from launcher.core.store import ObjectInfo
from launcher.core.types import Generation, RunId, Term
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.protocol.events import End
from launcher.runtime.records.inheritance import inherit
from tests.support.stores import MemoryStore
from tests.unit.runtime.controller.harness import desired

pytestmark = pytest.mark.unit


class SilentStore(MemoryStore):
    """Does not answer while it is `silent`."""

    silent = False

    def list(self, prefix: str) -> list[ObjectInfo]:
        if self.silent:
            raise StoreUnavailable("no answer")
        return super().list(prefix)


@pytest.fixture
def store() -> SilentStore:
    return SilentStore()


@pytest.fixture
def run(store: SilentStore) -> RunStore:
    return RunStore(store, RunId("r"))


@pytest.fixture
def leadership(run: RunStore) -> Leadership:
    return Leadership(run, run.claim_term("me", "now"), inherit(run), desired())


def test_who_has_the_highest_term_leads(leadership: Leadership) -> None:
    assert leadership.check()
    assert leadership.active


def test_a_higher_term_ends_the_leadership_for_good(run: RunStore, store: SilentStore, leadership: Leadership) -> None:
    run.claim_term("somebody else", "later")
    assert not leadership.check()
    assert (leadership.lost, leadership.active) == (True, False)
    store.objects.clear()
    assert not leadership.check()


def test_while_the_store_does_not_answer_what_is_known_holds(run: RunStore, store: SilentStore, leadership: Leadership) -> None:
    run.claim_term("somebody else", "later")
    store.silent = True
    assert leadership.check()
    store.silent = False
    assert not leadership.check()
    store.silent = True
    assert not leadership.check()


def test_a_new_term_of_the_same_controller_is_no_loss(run: RunStore, leadership: Leadership) -> None:
    left = replace(leadership.inherited, term=Term(1))
    leadership.begin_term(run.claim_term("me", "later"), left)
    assert leadership.check()
    assert (leadership.term, leadership.inherited) == (2, left)


def test_when_the_end_is_decided_nothing_is_left_to_decide(leadership: Leadership) -> None:
    leadership.end = End(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)
    assert not leadership.active
    assert leadership.check(), "it still leads"


def test_generations_are_numbered_above_those_of_earlier_terms(run: RunStore) -> None:
    left = replace(inherit(run), generation=Generation(7))
    group = Leadership(run, Term(2), left, desired(3, 4, 4)).group
    assert (group.number, group.minimum) == (7, 3)
