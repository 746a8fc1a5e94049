"""What errors and losses mean, given what happened before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, WorkerId
from launcher.runtime.policies import failure as f

pytestmark = pytest.mark.unit


def standing(committed: int = 0, *, others: int = 3, ready: int = 0, starting: int = 0, minimum: int = 1) -> f.Standing:
    return f.Standing(committed=Step(committed), others=others, ready=ready, starting=starting, minimum=minimum)


def error(worker: str, step: int, *, user: bool = True, code: ExitCode = ExitCode.JOB_FAILED) -> f.Error:
    return f.Error(WorkerId(worker), Step(step), f"KeyError in the job's code (step {step})\nTraceback of {worker}", code, user)


def loss(worker: str, generation: int, *, fresh: bool = False) -> f.Loss:
    return f.Loss(WorkerId(worker), Generation(generation), f"{worker} died: signal 9", fresh)


def play(*events: tuple[f.Event, f.Standing], history: f.History | None = None) -> tuple[f.History, list[f.Verdict | None]]:
    history = history or f.History()
    verdicts = []
    for event, around in events:
        history, verdict = f.judge(history, event, around)
        verdicts.append(verdict)
    return history, verdicts


def test_the_first_error_costs_the_worker_that_raised() -> None:
    _, [verdict] = play((error("w1", 5), standing(5)))
    assert isinstance(verdict, f.Recover)
    assert verdict.reason.startswith("KeyError in the job's code (step 5); w1 is given up, and step 5 is tried once more")
    assert verdict.reason.endswith("Traceback of w1")


def test_the_same_step_again_on_another_worker_ends_the_job_with_its_traceback() -> None:
    _, [_, verdict] = play((error("w1", 5), standing(4)), (error("w2", 5), standing(5)))
    assert isinstance(verdict, f.Fail)
    assert "it came again at step 5 on another worker (w1, then w2)" in verdict.reason
    assert verdict.reason.endswith("\nTraceback of w2")
    assert verdict.exit_code is ExitCode.JOB_FAILED


def test_the_same_step_is_remembered_across_a_roll_back() -> None:
    events = ((error("w1", 5), standing(5)), (error("w2", 9), standing(9)), (error("w3", 5), standing(9)))
    assert isinstance(play(*events)[1][-1], f.Fail)


def test_another_error_without_progress_ends_the_job() -> None:
    _, [_, verdict] = play((error("w1", 6), standing(5)), (error("w2", 5), standing(5)))
    assert isinstance(verdict, f.Fail)
    assert "w1 had raised at step 6, and no step was committed since" in verdict.reason


def test_an_error_after_progress_is_a_first_one() -> None:
    _, verdicts = play((error("w1", 5), standing(5)), (error("w2", 9), standing(9)), (error("w3", 12), standing(12)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover] * 3


def test_an_error_in_a_group_of_one_ends_the_job() -> None:
    _, [verdict] = play((error("w0", 5), standing(5, others=0, ready=1)))
    assert verdict == f.Fail("KeyError in the job's code (step 5)\nTraceback of w0", ExitCode.JOB_FAILED)


def test_errors_of_every_member_end_the_job_at_the_second() -> None:
    _, verdicts = play((error("w0", 5), standing(5, others=1)), (error("w1", 5), standing(5, others=0)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover, f.Fail]


@pytest.mark.parametrize("code", [ExitCode.USAGE, ExitCode.INFRASTRUCTURE, ExitCode.JOB_FAILED])
def test_an_error_that_is_not_of_the_jobs_code_ends_the_job_with_its_exit_code(code: ExitCode) -> None:
    _, [verdict] = play((error("w0", 5, user=False, code=code), standing(5)))
    assert isinstance(verdict, f.Fail)
    assert verdict.exit_code is code


def test_losses_are_recovered_from_and_progress_forgives_them() -> None:
    _, verdicts = play(*((loss(f"w{n}", n), standing(n)) for n in range(20)))
    assert {type(verdict) for verdict in verdicts} == {f.Recover}


def test_workers_lost_together_count_once() -> None:
    _, verdicts = play(*((loss(f"w{n}", 1), standing(others=16 - n)) for n in range(16)))
    assert {type(verdict) for verdict in verdicts} == {f.Recover}


def test_a_crash_loop_stops_the_offers_until_there_is_progress() -> None:
    history, verdicts = play(*((loss(f"w{n}", n), standing(7, others=8 - n)) for n in range(5)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover] * 3 + [f.StopOffering, f.Recover]
    assert "lost 4 times without a step committed in between" in history.no_offers
    history, _ = play((f.FirstCommit(newcomers=False), standing(8)), history=history)
    assert history.no_offers == ""


def test_a_crash_loop_that_leaves_too_few_ends_the_job() -> None:
    _, verdicts = play(*((loss(f"w{n}", n), standing(7, others=0)) for n in range(4)))
    assert isinstance(verdicts[-1], f.Fail)
    assert verdicts[-1].reason.startswith("w3 died: signal 9; workers were lost 4 times")


def test_steps_done_again_after_a_roll_back_are_no_progress() -> None:
    committed = (50, 44, 49, 48)
    _, verdicts = play(*((loss("w0", n), standing(step, others=0)) for n, step in enumerate(committed)))
    assert isinstance(verdicts[-1], f.Fail)


def test_newcomers_that_are_lost_at_their_first_step_stop_the_offers_although_the_others_go_on() -> None:
    events: list[tuple[f.Event, f.Standing]] = []
    for turn in range(3):
        events += [(loss(f"w{turn}", 2 * turn, fresh=True), standing(10 * turn)), (f.FirstCommit(newcomers=False), standing(10 * turn + 1))]
    history, verdicts = play(*events)
    assert [type(verdict) for verdict in verdicts if verdict] == [f.Recover, f.Recover, f.StopOffering]
    assert "until the wish changes" in history.no_offers
    history, _ = play((f.DesiredChanged(), standing(40)), history=history)
    assert history.no_offers == ""


def test_a_newcomer_that_does_a_step_forgives_those_before() -> None:
    events = (
        (loss("w1", 1, fresh=True), standing(1)),
        (loss("w2", 3, fresh=True), standing(2)),
        (f.FirstCommit(newcomers=True), standing(3)),
    )
    history, _ = play(*events)
    assert history.died_fresh == frozenset()


def start(worker: str, cause: str) -> f.StartFailed:
    return f.StartFailed(WorkerId(worker), cause, f"{cause} of {worker}\nTraceback of {worker}")  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", ["user", "launcher", "death"])
def test_newcomers_that_cannot_be_built_stop_the_offers_and_disturb_nobody(cause: str) -> None:
    history, verdicts = play(*((start(f"w{n}", cause), standing(9)) for n in range(4)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover, f.Recover, f.StopOffering, f.Recover]
    assert history.no_offers.startswith("3 workers in a row could not be started")


def test_a_newcomer_that_is_ready_forgives_those_before() -> None:
    events = (
        (start("w1", "death"), standing()),
        (start("w2", "death"), standing()),
        (f.BecameReady(), standing()),
        (start("w3", "death"), standing()),
    )
    assert isinstance(play(*events)[1][-1], f.Recover)


def test_a_model_that_no_worker_can_build_ends_the_job_at_the_second() -> None:
    around = standing(others=0, starting=3, minimum=2)
    _, verdicts = play((start("w0", "user"), around), (start("w1", "user"), around))
    assert [type(verdict) for verdict in verdicts] == [f.Recover, f.Fail]
    assert verdicts[1] == f.Fail("user of w1; it came on w0 and on w1\nTraceback of w1", ExitCode.JOB_FAILED)


def test_a_model_that_the_only_worker_cannot_build_ends_the_job() -> None:
    assert play((start("w0", "user"), standing(others=0)))[1] == [f.Fail("user of w0\nTraceback of w0", ExitCode.JOB_FAILED)]


def test_workers_that_die_at_start_are_tried_three_times() -> None:
    _, verdicts = play(*((start(f"w{n}", "death"), standing(others=0)) for n in range(3)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover, f.Recover, f.Fail]
    assert "3 workers in a row could not be started; 0 of at least 1 workers are left" in str(verdicts[-1])


def test_some_that_fit_go_on_without_those_that_do_not() -> None:
    _, verdicts = play(*((start(f"w{n}", "death"), standing(others=2, minimum=2)) for n in range(3)))
    assert [type(verdict) for verdict in verdicts] == [f.Recover, f.Recover, f.StopOffering]


def test_after_the_offers_stopped_a_loss_below_the_minimum_ends_the_job() -> None:
    history, _ = play(*((start(f"w{n}", "death"), standing(others=2, minimum=2)) for n in range(3)))
    _, [verdict] = play((loss("w9", 4), standing(5, others=1, minimum=2)), history=history)
    assert isinstance(verdict, f.Fail)


def test_a_setting_that_is_wrong_everywhere_ends_the_start_at_once() -> None:
    wrong = f.StartFailed(WorkerId("w0"), "launcher", "no such device", ExitCode.INFRASTRUCTURE)
    assert play((wrong, standing(others=0, starting=3, minimum=2)))[1] == [f.Fail("no such device", ExitCode.INFRASTRUCTURE)]


troubles = st.one_of(
    st.builds(error, st.sampled_from(["w0", "w1", "w2"]), st.integers(7, 9)),
    st.builds(loss, st.sampled_from(["w0", "w1", "w2"]), st.integers(0, 3)),
    st.builds(start, st.sampled_from(["w3", "w4"]), st.sampled_from(["user", "launcher", "death"])),
)


@given(st.lists(troubles, min_size=12, max_size=30), st.integers(0, 4))
def test_no_trouble_goes_on_for_ever_without_progress(events: list[f.Error | f.Loss | f.StartFailed], others: int) -> None:
    """Each loss ends its own generation; the generations of the strategy only say which kind of event it is."""
    numbered = [f.Loss(e.worker, Generation(n), e.reason) if isinstance(e, f.Loss) else e for n, e in enumerate(events)]
    around = standing(8, others=others)
    history, verdicts = play(*((event, around) for event in numbered))
    assert play(*((event, around) for event in numbered)) == (history, verdicts), "the same history judges the same"
    assert history.no_offers or any(isinstance(verdict, f.Fail) for verdict in verdicts)
