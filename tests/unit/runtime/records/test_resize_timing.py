"""What a change of the group cost, by moments that are handed in."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, WorkerId
from launcher.record.members import ResizeFacts
from launcher.runtime.protocol.messages import Formed
from launcher.runtime.records.resize_timing import ResizeTiming

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
G2 = Generation(2)


def crash() -> ResizeTiming:
    """B is lost at 100 s, half a second after its last sign of life; A goes on with C."""
    line = ResizeTiming(cause="lost", reason="worker w1 died", begun_at=100.0, before=(A, B), detect_s=0.5)
    line.committed(G2, 101.0)
    line.formed_by(A, Formed(G2, Step(40), connect_s=0.25, move_s=0.5, pause_s=2.0))
    line.formed_by(C, Formed(G2, Step(40), connect_s=0.125, move_s=0.75, pause_s=99.0))
    line.formed(G2, (A, C), Step(40), 102.0, hold=False)
    return line


def test_a_change_is_told_from_the_notice_to_the_first_step_of_all() -> None:
    line = crash()
    line.stepped(A, G2, 102.5)
    assert not line.complete
    line.stepped(C, G2, 103.0)
    assert line.complete
    assert line.facts() == ResizeFacts(
        cause="lost",
        reason="worker w1 died",
        from_size=2,
        to_size=2,
        detect_s=0.5,
        agree_s=0.75,
        form_s=0.25,
        move_s=0.75,
        first_step_s=1.0,
        total_s=3.5,
        pause_s=2.0,
        slowdown=None,
        joined=(C,),
        left=(B,),
    )
    assert (line.generation, line.step) == (G2, 40)


def test_a_step_counts_once_in_its_own_generation_and_after_it_was_formed() -> None:
    line = ResizeTiming(cause="grow", reason="", begun_at=0.0, before=(A,))
    line.stepped(A, Generation(1), 1.0)
    line.committed(G2, 1.0)
    line.stepped(A, G2, 1.5)
    assert not line.complete, "not all have formed it, though a first step may be heard before"
    line.formed(G2, (A, B), Step(3), 2.0, hold=False)
    line.stepped(B, Generation(1), 2.5)
    assert not line.complete
    line.stepped(B, G2, 4.0)
    assert line.complete
    assert line.facts().first_step_s == 2.0


def test_what_is_not_known_is_null() -> None:
    line = ResizeTiming(cause="grow", reason="asked for", begun_at=10.0, before=(A,))
    facts = line.facts()
    assert {name for name in ResizeFacts.__struct_fields__ if getattr(facts, name) is None} == {
        "detect_s",
        "agree_s",
        "form_s",
        "move_s",
        "first_step_s",
        "total_s",
        "pause_s",
        "slowdown",
    }
    assert (line.generation, line.step) == (None, None)
    line.committed(G2, 12.0)
    line.formed_by(B, Formed(G2, Step(40), connect_s=None, move_s=0.25, pause_s=None))
    line.formed(G2, (A, B), Step(3), 13.0, hold=False)
    facts = line.facts()
    assert (facts.agree_s, facts.form_s, facts.pause_s, facts.total_s) == (2.0, None, None, None)


def test_a_group_that_only_holds_is_done_when_it_is_formed() -> None:
    line = ResizeTiming(cause="lost", reason="", begun_at=100.0, before=(A, B), detect_s=1.0)
    line.committed(G2, 101.0)
    line.formed(G2, (A,), Step(40), 102.0, hold=True)
    facts = line.facts()
    assert (facts.total_s, facts.first_step_s) == (3.0, None)


def test_forming_in_the_background_is_not_counted_twice() -> None:
    """Connecting may have taken longer than from the request to the decision: agreeing then took nothing, not less."""
    line = ResizeTiming(cause="grow", reason="", begun_at=0.0, before=(A,))
    line.committed(G2, 1.0)
    line.formed_by(A, Formed(G2, Step(40), connect_s=1.5))
    assert line.facts().agree_s == 0.0
