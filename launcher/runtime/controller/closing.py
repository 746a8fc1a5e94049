"""The last entries of a run's record: what its final status says holds from then on. Runs in the controller process."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.record.events import Ended
from launcher.record.members import Member
from launcher.runtime.controller.leadership import Leadership
from launcher.runtime.protocol.events import End
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter


def write_end(leadership: Leadership, end: End, recorder: RunRecorder, status: StatusWriter, members: Sequence[Member] = ()) -> None:
    """Hand the end to the writer, after everything that the run has done. `members`: of the last generation."""
    status.end(end)
    recorder.flush(ledger=True)
    recorder.event(Ended(state=end.state, reason=end.reason.partition("\n")[0], exit_code=int(end.exit_code)))
    recorder.flush(ledger=True)
    write_status(leadership, recorder, status, members)


def write_status(leadership: Leadership, recorder: RunRecorder, status: StatusWriter, members: Sequence[Member]) -> None:
    status.write(
        leadership.term,
        progress=recorder.progress,
        bounds=leadership.desired.workers,
        generation=recorder.generation,
        members=members,
        end=leadership.end,
    )
