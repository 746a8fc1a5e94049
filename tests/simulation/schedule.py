"""One schedule from one seed: which resizes and faults, when; then all is mended, and the run must come to its end.

Each has at least two changes of size and two faults that the run felt: towards its end its steps become slow until they have
happened, and a seed whose run is over before is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from launcher.checkpoint.catalog import list_checkpoints
from launcher.record.lineage import lineage
from launcher.record.status import JobState
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from tests.simulation.cluster import Cluster, dump
from tests.simulation.invariants import Violation
from tests.simulation.loop import Loop
from tests.simulation.worker import Worker

CALM_AFTER_S = 3.0
LONGEST_UNREST_S = 30.0
PATIENCE_S = 90.0
"""Virtual seconds after all is mended within which the run must end."""
LEAST = 2
"""So many changes of size, and so many faults, has every schedule."""
DRAWS = 8
ENCODED_EVERY = 50
"""In one of so many schedules messages go through the codec."""
SLOW = 6.0
"""So many times as long a step takes while the run must not end yet."""


@dataclass
class Result:
    seed: int
    violation: str
    invariant: str
    seconds: float
    faults: int
    resizes: int
    end: str
    counts: dict[str, int]
    story: list[str]


class Schedule:
    def __init__(self, seed: int, draw: int = 0, *, tracing: bool = False) -> None:
        self.loop = loop = Loop(seed, draw, tracing=tracing)
        rng = loop.rng
        self.seed = seed
        total = rng.randrange(10, 21)
        target = rng.randrange(2, 6)
        self.cluster = Cluster(
            loop,
            target=target,
            minimum=rng.randrange(1, min(target, 3) + 1),
            total_steps=total,
            save_every=rng.randrange(3, 6),
            encoded=seed % ENCODED_EVERY == 0,
        )
        self.faults = 0
        self.calm = False
        self.cluster.slowness = self._slowness
        self._waits_until = 0.0
        self._armed: list[tuple[type, Callable[[], None]]] = []
        kinds = [self._resize] * rng.randrange(2, 4)
        kinds += [rng.choice(self._kinds()) for _ in range(rng.randrange(2, 6))]
        self._stops = rng.random() < 0.08
        self._due = sorted(((rng.randrange(0, total - 4), index, kind) for index, kind in enumerate(kinds)), key=lambda due: due[:2])
        cluster = self.cluster
        cluster.loss = rng.choice((0.0, 0.02, 0.1))
        cluster.store_failure = rng.choice((0.0, 0.02, 0.08))
        cluster.store_pause = rng.choice((0.1, 0.3, 0.6))
        cluster.connect_failure = rng.choice((0.0, 0.05))
        cluster.watchers.append(self._look)
        cluster.on_order = self._on_order
        loop.at(0.0, None, cluster.start_controller)
        loop.at(rng.uniform(0.3, 1.5), None, self._look)
        loop.at(12.0, None, self._hurry)
        loop.at(LONGEST_UNREST_S, None, self._mend)  # at the latest

    def _kinds(self) -> list[Callable[[], None]]:
        return [
            self._kill,
            self._kill_first,
            self._kill_two,
            self._kill_in_change,
            self._kill_in_change,
            self._freeze,
            self._freeze,
            self._isolate,
            self._isolate_first,
            self._outlive,
            self._raise,
            self._break,
            self._hang,
            self._kill_controller,
            self._kill_controller,
            self._freeze_controller,
            self._second_controller,
            self._lack,
            self._drain,
            self._lose_all,
            self._damage,
        ]

    def run(self) -> Result:
        loop, cluster = self.loop, self.cluster
        violation = invariant = ""
        try:
            loop.run(LONGEST_UNREST_S + PATIENCE_S)
            if cluster.end is None:
                raise Violation("nobody waits for ever", f"no end after {loop.now:.0f} s")
            if not self._as_wished(cluster.end):
                raise Violation("the run ends as wished", f"{cluster.end}: {cluster.check.reason}")
        except Violation as error:
            violation, invariant = str(error), error.invariant
        except Exception as error:
            violation, invariant = f"{type(error).__name__}: {error}", type(error).__name__
            if loop.tracing:
                raise
        if loop.tracing:
            loop.note(violation or "all holds")
            loop.story += dump(cluster.store)
        end = cluster.end.value if cluster.end is not None else ""
        return Result(
            self.seed,
            violation,
            invariant,
            loop.now,
            self.faults,
            cluster.check.sizes_changed,
            end,
            dict(cluster.coverage.counts),
            loop.story,
        )

    def _as_wished(self, end: JobState) -> bool:
        """Of itself a run fails where the failure policy says that there is no more to try."""
        cluster = self.cluster
        if end is JobState.FAILED:
            return cluster.check.reason in cluster.policy_failures
        return end is JobState.SUCCEEDED or (end is JobState.STOPPED and cluster.stop_wanted)

    @property
    def full(self) -> bool:
        return self.faults >= LEAST and self.cluster.check.sizes_changed >= LEAST

    # when

    def _slowness(self) -> float:
        late = self.cluster.progress > 0.6 * self.cluster.total_steps
        return SLOW if late and not self.calm and not (self.full and not self._due) else 1.0

    def _look(self) -> None:
        while self._due and self._due[0][0] <= self.cluster.progress:
            kind = self._due.pop(0)[2]
            self.loop.at(self.loop.uniform(0.0, 0.6), None, self._fire, kind)

    def _hurry(self) -> None:
        """There was no progress that would have brought them: all that is left comes now."""
        due, self._due = self._due, []
        for _, _, kind in due:
            self.loop.at(self.loop.uniform(0.0, 4.0), None, self._fire, kind)
        if not due:
            self._fired()

    def _fire(self, kind: Callable[[], None]) -> None:
        if self.loop.tracing:
            self.loop.note(f"--- {kind.__name__.strip('_')}")
        kind()
        self._fired()

    def _fired(self) -> None:
        if self._due or self.calm:
            return
        loop = self.loop
        if self.full or loop.now > LONGEST_UNREST_S:
            if self._stops:
                loop.at(loop.uniform(0.0, CALM_AFTER_S), None, self._stop)
            loop.at(loop.uniform(0.5, CALM_AFTER_S), None, self._mend)
        elif self._waits_until <= loop.now:
            self._waits_until = loop.now + 1.0
            missing = self._resize if self.cluster.check.sizes_changed < LEAST else loop.rng.choice(self._kinds())
            loop.at(loop.uniform(1.0, 2.0), None, self._fire, missing)

    def _mend(self) -> None:
        if self.calm or self._due:
            return
        self.calm = True
        if self.loop.tracing:
            self.loop.note("--- all is mended")
        cluster = self.cluster
        cluster.loss = cluster.store_failure = cluster.connect_failure = 0.0
        cluster.store_pause = 0.05
        cluster.capacity = 9
        cluster.place()
        self._armed.clear()
        for worker in cluster.living():
            self._reach(worker)
            worker.wake()
        for controller in cluster.controllers:
            controller.wake()
            controller.acts_left = None

    # which

    def _some(self) -> Worker | None:
        members = self._members()
        return self.loop.rng.choice(members) if members else None

    def _members(self) -> list[Worker]:
        return [worker for worker in self.cluster.living() if worker.participant.applied is not None or self.loop.chance(0.2)]

    def _happens(self) -> None:
        """A fault that the run feels: it has not come to its end yet."""
        if self.cluster.end is None:
            self.faults += 1

    def _dies(self, worker: Worker | None, why: str) -> None:
        if worker is not None and worker.alive:
            self._happens()
            worker.dies(why)

    def _resize(self) -> None:
        cluster = self.cluster
        choices = [size for size in range(cluster.minimum, 6) if size != cluster.target]
        cluster.target = self.loop.rng.choice(choices)
        cluster.want()
        if self.loop.tracing:
            self.loop.note(f"target {cluster.target}")

    def _kill(self) -> None:
        self._dies(self._some(), "killed")

    def _kill_first(self) -> None:
        firsts = [worker for worker in self._members() if worker.participant.assignment.rank == 0]
        self._dies(self.loop.rng.choice(firsts) if firsts else self._some(), "killed, rank 0")

    def _kill_two(self) -> None:
        self._kill()
        self._kill()

    def _kill_in_change(self) -> None:
        self._armed.append((self.loop.rng.choice((e.Prepare, e.Commit, e.Commit, e.Leave)), self._kill_one_of_change))

    def _kill_one_of_change(self) -> None:
        rng = self.loop.rng
        living = self.cluster.living()
        if not living:
            return
        victim = rng.choice(living)
        if rng.random() < 0.25:
            self._kill_controller()
        elif rng.random() < 0.3:
            self._freeze_one(victim)
        else:
            self._dies(victim, "killed in a change")

    def _on_order(self, order: e.Action) -> None:
        for armed in self._armed:
            if isinstance(order, armed[0]):
                self._armed.remove(armed)
                self.loop.at(self.loop.uniform(0.0, 0.6), None, armed[1])
                return

    def _freeze(self) -> None:
        worker = self._some()
        if worker is not None:
            self._freeze_one(worker)

    def _freeze_one(self, worker: Worker) -> None:
        self._happens()
        worker.freeze()
        if self.loop.tracing:
            self.loop.note(f"{worker.name} freezes")
        self.loop.at(self.loop.uniform(0.3, 6.0), None, worker.wake)

    def _isolate(self) -> None:
        self._isolate_one(self._some(), self.loop.uniform(0.3, 6.0))

    def _isolate_first(self) -> None:
        """For so long that it is evicted; what it says comes when others have taken its place."""
        firsts = [worker for worker in self._members() if worker.participant.assignment.rank == 0 and worker.participant.inside]
        self._isolate_one(self.loop.rng.choice(firsts) if firsts else self._some(), self.loop.uniform(2.5, 5.0))

    def _isolate_one(self, worker: Worker | None, seconds: float) -> None:
        if worker is not None:
            self._happens()
            worker.isolated = True
            if self.loop.tracing:
                self.loop.note(f"{worker.name} cannot be reached")
            self.loop.at(seconds, None, self._reach, worker)

    def _reach(self, worker: Worker) -> None:
        if worker.isolated:
            worker.isolated = False
            if worker.link is not None and not worker.link.open:
                worker.at(0.01, worker.lost_connection, worker.link)

    def _outlive(self) -> None:
        """One that was evicted, but could not be ended, is there again when another controller takes over."""
        worker, loop = self._some(), self.loop
        if worker is None:
            return
        self._happens()
        worker.isolated = True
        if loop.tracing:
            loop.note(f"{worker.name} cannot be reached, until there is another controller")
        if loop.chance(0.5):
            loop.at(loop.uniform(3.0, 6.0), None, self._replace, worker)
            return
        for other in self.cluster.living():  # then what it holds is computed again by others
            if other is not worker:
                loop.at(loop.uniform(0.0, 0.3), None, self._dies, other, "all others are lost")
        loop.at(loop.uniform(5.0, 9.0), None, self._replace, worker)

    def _replace(self, worker: Worker) -> None:
        for controller in self.cluster.controllers:
            controller.dies("killed")
        self._reach(worker)

    def _raise(self) -> None:
        worker = self._some()
        if worker is not None:
            self._happens()
            worker.raises = True

    def _break(self) -> None:
        worker = self._some()
        if worker is not None and worker.link is not None:
            self._happens()
            if self.loop.tracing:
                self.loop.note(f"the connection of {worker.name} breaks")
            worker.link.breaks()

    def _hang(self) -> None:
        """All wait in one collective, and nothing moves; not before the first step, where there is no generation yet to make anew."""
        worker = self._some()
        if worker is not None and worker.group is not None and worker.stepped_in is not None and worker.participant.inside:
            self._happens()
            worker.group.hangs = True

    def _kill_controller(self) -> None:
        living = [controller for controller in self.cluster.controllers if controller.alive]
        if not living:
            return
        self._happens()
        if self.loop.chance(0.5):
            living[-1].dies("killed")
        else:
            living[-1].acts_left = self.loop.rng.randrange(0, 12)

    def _freeze_controller(self) -> None:
        """It is taken for dead, another takes over, and it wakes up."""
        living = [controller for controller in self.cluster.controllers if controller.alive]
        if living:
            self._happens()
            living[-1].freeze()
            self.loop.at(self.loop.uniform(0.2, 5.0), None, living[-1].wake)
            self.loop.at(self.loop.uniform(0.1, 2.0), None, self.cluster.start_controller)

    def _second_controller(self) -> None:
        self._happens()
        self.cluster.start_controller()

    def _lack(self) -> None:
        """Fewer places than the run needs; later there are enough again."""
        self.cluster.capacity = self.loop.rng.randrange(0, max(1, self.cluster.minimum))
        living = self.cluster.living()
        for worker in living[self.cluster.capacity :]:
            if self.loop.chance(0.8):
                self.loop.at(self.loop.uniform(0.0, 0.5), None, self._dies, worker, "its place is taken away")
        self.loop.at(self.loop.uniform(1.0, 5.0), None, self._places)

    def _places(self) -> None:
        self.cluster.capacity = 9
        self.cluster.place()

    def _drain(self) -> None:
        worker = self._some()
        if worker is not None:
            seconds = self.loop.uniform(2.0, 6.0)
            worker.say(m.Draining("test", seconds, "its node is drained"))
            self.loop.at(seconds, None, self._dies, worker, "its node was drained")

    def _lose_all(self) -> None:
        for worker in self.cluster.living():
            self.loop.at(self.loop.uniform(0.0, 0.3), None, self._dies, worker, "all are lost")

    def _damage(self) -> None:
        """The newest checkpoint is not whole any more, and mostly it is needed."""
        run = self.cluster.plain_run
        newest = next(iter(list_checkpoints(run, lineage(run.terms()[1]))), None)
        if newest is None:
            return
        self._happens()
        self.cluster.damaged.add(newest.key)
        if self.loop.chance(0.8):
            self._lose_all()

    def _stop(self) -> None:
        self.cluster.want(stop=True)


def play(seed: int, *, tracing: bool = False) -> Result:
    for draw in range(DRAWS):
        schedule = Schedule(seed, draw, tracing=tracing)
        result = schedule.run()
        if schedule.full or result.violation:
            return result
    return replace(result, violation=f"no schedule in {DRAWS} draws", invariant="each schedule has its faults")
