"""Who is given up, second by second."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.policies.health import Beat, Health, Hung, Patience, Silent, Tie, Unanswered, Verdict

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
TICK_S = 0.5


def beat(progress: int = 7, *, waiting: bool = False, phase: str = "training", applied: int = 3) -> Beat:
    return Beat(generation=Generation(1), applied=Step(applied), progress=progress, waiting=waiting, busy_s=0.1, phase=phase)


class Watch:
    """A health and its clock: each worker repeats its beat every half second, as the real ones do."""

    def __init__(self, *members: WorkerId, patience: Patience | None = None) -> None:
        self.health, self.now = Health(patience or Patience(silence_s=3.0, hang_s=60.0)), 100.0
        self.beats: dict[WorkerId, Beat | None] = {member: beat() for member in members}
        self.tick(0.0)
        self.health.formed(members, self.now)

    def tick(self, seconds: float) -> tuple[Verdict, ...]:
        """The verdicts at the end; a beat of None: the worker says nothing."""
        until = self.now + seconds
        while True:
            for worker, each in self.beats.items():
                if each is not None:
                    self.health.heard(worker, each, self.now)
            verdicts = self.health.verdicts(self.now)
            if self.now >= until:
                return verdicts
            self.now = min(self.now + TICK_S, until)


def test_a_silent_worker_is_given_up_after_its_limit_and_not_before() -> None:
    watch = Watch(A, B)
    watch.beats[B] = None
    assert watch.tick(3.0) == ()
    (verdict,) = watch.tick(0.5)
    assert verdict == Silent(B, 3.5, 3.0)
    assert verdict.reason == "worker w1 has been silent for 3.5 s (limit 3 s)"
    watch.health.forget(B)
    assert watch.tick(10.0) == ()


def test_any_message_is_a_sign_of_life() -> None:
    watch = Watch(A)
    watch.beats[A] = None
    for _ in range(5):
        watch.tick(2.5)
        watch.health.heard(A, None, watch.now)
    assert watch.tick(2.5) == ()


def test_long_steps_make_silence_longer() -> None:
    watch = Watch(A)
    watch.health.step_time(2.0)
    watch.beats[A] = None
    assert watch.tick(12.0) == ()
    assert watch.tick(0.5) == (Silent(A, 12.5, 12.0),)


@pytest.mark.parametrize("phase", ["building", "loading"])
def test_who_builds_may_be_silent_for_longer(phase: str) -> None:
    watch = Watch(A)
    watch.beats[A] = beat(0, phase=phase)
    watch.tick(0.0)
    watch.beats[A] = None
    assert watch.tick(60.0) == ()
    assert watch.tick(0.5) == (Silent(A, 60.5, 60.0),)


def test_who_keeps_others_waiting_is_hung_and_they_are_not() -> None:
    watch = Watch(A, B, C)
    watch.beats |= {A: beat(8, waiting=True), C: beat(8, waiting=True)}
    assert watch.tick(60.0) == ()
    (verdict,) = watch.tick(0.5)
    assert verdict == Hung(B, 60.5, 60.0)
    assert verdict.reason == "worker w1 has kept the others waiting for 60.5 s without a forward pass (limit 60 s)"


def test_who_keeps_nobody_waiting_is_not_hung() -> None:
    watch = Watch(A, B)
    assert watch.tick(500.0) == (), "neither waits"
    alone = Watch(A)
    assert alone.tick(500.0) == ()


def test_time_counts_from_when_the_others_began_to_wait() -> None:
    watch = Watch(A, B)
    assert watch.tick(50.0) == ()
    watch.beats[A] = beat(8, waiting=True)
    assert watch.tick(60.0) == ()
    assert watch.tick(0.5) == (Hung(B, 60.5, 60.0),)


def test_every_forward_pass_gives_new_time() -> None:
    watch = Watch(A, B)
    watch.beats[A] = beat(8, waiting=True)
    for progress in range(8, 11):
        watch.beats[B] = beat(progress)
        assert watch.tick(59.0) == ()
    assert watch.tick(1.5) == (Hung(B, 60.5, 60.0),)


def test_long_steps_make_hangs_longer() -> None:
    watch = Watch(A, B)
    watch.health.step_time(10.0)
    watch.beats[A] = beat(8, waiting=True)
    assert watch.tick(200.0) == ()
    assert watch.tick(0.5) == (Hung(B, 200.5, 200.0),)


def test_the_first_step_of_a_generation_is_measured_from_its_forming() -> None:
    watch = Watch(A, B)
    watch.beats[A] = beat(8, waiting=True)
    watch.tick(50.0)
    watch.health.formed([A, B], watch.now)
    assert watch.tick(60.0) == ()
    assert watch.tick(0.5) == (Hung(B, 60.5, 60.0),)


def test_of_several_that_hang_the_one_behind_goes_first() -> None:
    watch = Watch(A, B, C)
    watch.beats |= {A: beat(8, waiting=True), B: beat(8, applied=4), C: beat(9, applied=3)}
    assert watch.tick(61.0) == (Hung(C, 61.0, 60.0),), "C has applied a step less, however many passes it made"
    watch.beats |= {B: beat(8), C: beat(8)}
    watch.tick(0.0)
    assert [verdict.worker for verdict in watch.tick(61.0) if isinstance(verdict, Hung)] == [B, C]


@pytest.mark.parametrize("phase", ["saving", "evaluating"])
def test_a_long_upload_or_evaluation_is_not_condemned_nor_what_follows_it(phase: str) -> None:
    watch = Watch(A, B)
    watch.beats |= {A: beat(8, waiting=True), B: beat(phase=phase)}
    assert watch.tick(500.0) == ()
    watch.beats[B] = beat()
    assert watch.tick(60.0) == (), "the pass after it has its full time"
    watch.beats[B] = beat(phase=phase)
    assert watch.tick(600.0) == ()
    assert watch.tick(0.5) == (Hung(B, 600.5, 600.0),)


def test_when_all_wait_for_each_other_nobody_is_blamed_but_all_have_to_leave() -> None:
    watch = Watch(A, B)
    watch.beats |= {A: beat(8, waiting=True), B: beat(9, waiting=True)}
    assert watch.tick(60.0) == ()
    (verdict,) = watch.tick(0.5)
    assert verdict == Tie((A, B), 60.5, 60.0)
    assert verdict.reason == "all 2 workers have been waiting inside a collective for 60.5 s without a forward pass (limit 60 s)"


def test_after_a_tie_who_does_not_answer_is_given_up() -> None:
    watch = Watch(A, B)
    watch.beats |= {A: beat(8, waiting=True), B: beat(9, waiting=True)}
    assert [type(verdict) for verdict in watch.tick(61.0)] == [Tie]
    watch.health.asked([A, B], watch.now)
    assert watch.tick(0.0) == (), "a tie is told once"
    watch.health.answered(A)
    watch.beats[A] = beat(8, phase="left")
    assert watch.tick(3.0) == ()
    (verdict,) = watch.tick(0.5)
    assert verdict == Unanswered(B, 3.5, 3.0)
    assert verdict.reason == "worker w1 was told to leave its collective 3.5 s ago and has not answered (limit 3 s)"
    watch.health.forget(B)
    assert watch.tick(100.0) == ()


def test_who_is_told_to_leave_within_a_forward_pass_may_finish_it() -> None:
    """A compilation cannot be left; only a collective can."""
    watch = Watch(A)
    watch.health.asked([A], watch.now)
    assert watch.tick(60.0) == ()
    assert watch.tick(0.5) == (Unanswered(A, 60.5, 60.0),)


def test_asking_again_does_not_put_off_the_answer() -> None:
    watch = Watch(A)
    watch.beats[A] = beat(waiting=True)
    watch.health.asked([A], watch.now)
    watch.tick(2.0)
    watch.health.asked([A, WorkerId("unknown")], watch.now)
    assert watch.tick(1.5) == (Unanswered(A, 3.5, 3.0),)


def test_a_new_generation_owes_nothing() -> None:
    watch = Watch(A)
    watch.beats[A] = beat(waiting=True)
    watch.health.asked([A], watch.now)
    watch.health.formed([A], watch.now)
    assert watch.tick(10.0) == ()


@pytest.mark.parametrize("asked", [True, False])
def test_silence_explains_a_hang_and_a_missing_answer(asked: bool) -> None:
    watch = Watch(A, B)
    watch.beats |= {A: beat(8, waiting=True), B: beat(7)}
    watch.tick(0.0)
    if asked:
        watch.health.asked([B], watch.now)
    watch.beats[B] = None
    assert watch.tick(70.0) == (Silent(B, 70.0, 3.0),)


def test_a_controller_that_stood_still_condemns_nobody() -> None:
    watch = Watch(A, B)
    watch.tick(20.0)
    watch.beats |= {A: beat(8, waiting=True), B: beat(8)}
    watch.tick(50.0)
    watch.health.asked([A], watch.now)
    watch.now += 3600.0
    assert watch.health.verdicts(watch.now) == (), "nothing was heard for an hour, by nobody's fault but its own"
    watch.health.answered(A)
    assert watch.tick(10.0) == (), "ten of B's seconds are left"
    assert watch.tick(0.5) == (Hung(B, 60.5, 60.0),)


def test_what_was_heard_on_waking_is_not_put_into_the_future() -> None:
    watch = Watch(A)
    watch.now += 3600.0
    watch.health.heard(A, beat(), watch.now)
    assert watch.health.verdicts(watch.now) == ()
    watch.beats[A] = None
    assert watch.tick(3.5) == (Silent(A, 3.5, 3.0),)


def test_a_pause_below_the_limit_is_no_excuse() -> None:
    watch = Watch(A)
    watch.beats[A] = None
    watch.tick(2.0)
    watch.now += 2.0
    assert watch.health.verdicts(watch.now) == (Silent(A, 4.0, 3.0),)


def test_who_is_no_member_is_heard_but_not_measured_against_the_group() -> None:
    watch = Watch(A, B)
    watch.beats |= {A: beat(8, waiting=True), B: beat(8), C: beat(0, phase="ready")}
    watch.tick(30.0)
    watch.beats[B] = beat(9)
    assert watch.tick(50.0) == ()
    watch.beats[C] = None
    assert watch.tick(3.5) == (Silent(C, 3.5, 3.0),)
