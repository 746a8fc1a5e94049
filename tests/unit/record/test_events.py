"""Every event, row and line comes back from its JSON as it was, and JSON of another version as it came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from msgspec.structs import fields

from launcher.core.errors import StoreDamaged
from launcher.core.types import Generation, JsonObject, Step, Term, WorkerId
from launcher.record.events import (
    KINDS,
    STAMP,
    CheckpointCommitted,
    Ended,
    Event,
    LedgerEntry,
    RecordedEvent,
    UnknownEvent,
    decode,
    encode,
    kind_of,
)
from launcher.record.members import Member
from launcher.record.status import JobState

pytestmark = pytest.mark.unit
WHERE = "runs/r/events/1-1.jsonl"
NAMES = st.text(min_size=1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FIGURES = st.none() | st.booleans() | st.integers() | NUMBERS | st.text()
JSON = FIGURES | st.lists(FIGURES, max_size=2) | st.dictionaries(NAMES, FIGURES, max_size=2)
FACTS = st.dictionaries(NAMES.filter(lambda name: name not in STAMP), JSON, max_size=4)
NOTHING: st.SearchStrategy[dict[str, Any]] = st.just({})
st.register_type_strategy(float, NUMBERS)
st.register_type_strategy(UnsetType, st.just(UNSET))


def events_of(event: type[Event]) -> st.SearchStrategy[Event]:
    return st.builds(event, **{fact.name: st.from_type(fact.type) for fact in fields(event)})


def recorded(event: st.SearchStrategy[Any], extra: st.SearchStrategy[dict[str, Any]] = NOTHING) -> st.SearchStrategy[RecordedEvent]:
    numbers = st.integers(0, 2**40)
    return st.builds(RecordedEvent, time=st.text(), term=numbers, generation=numbers, step=numbers, event=event, extra=extra)


def stored(document: JsonObject) -> JsonObject:
    read: JsonObject = json.loads(json.dumps(document, allow_nan=False))
    return read


@pytest.mark.parametrize("event", KINDS.values(), ids=KINDS)
def test_every_kind_comes_back_as_it_was(event: type[Event]) -> None:
    @settings(max_examples=25)
    @given(recorded(events_of(event), FACTS.map(lambda more: {key: more[key] for key in more if key not in event.__struct_fields__})))
    def check(written: RecordedEvent) -> None:
        document = encode(written)
        assert document["kind"] == kind_of(event)
        assert list(document) == sorted(document)
        assert decode(stored(document), where=WHERE) == written

    check()


@given(recorded(st.builds(UnknownEvent, kind=NAMES.filter(lambda kind: kind not in KINDS), facts=FACTS)))
def test_a_kind_of_a_newer_version_comes_back_too(written: RecordedEvent) -> None:
    assert decode(stored(encode(written)), where=WHERE) == written


def test_each_kind_has_one_class() -> None:
    assert len(KINDS) == len(Event.__subclasses__())
    for kind, event in KINDS.items():
        name = "".join(word.capitalize() for word in kind.split("_"))
        assert event.__name__ == name or event is LedgerEntry
        assert not {*event.__struct_fields__} & {*STAMP}, "a fact would replace the stamp"


def test_the_json_is_flat_and_leaves_out_what_is_not_said() -> None:
    ledger = LedgerEntry(first=Step(11), last=Step(20), samples=(80, 160))
    stamp = {"time": "t", "term": Term(2), "generation": Generation(3), "step": Step(20)}
    written = {"time": "t", "term": 2, "generation": 3, "step": 20, "kind": "steps", "first": 11, "last": 20, "samples": [80, 160]}
    assert encode(RecordedEvent(**stamp, event=ledger)) == written  # type: ignore[arg-type]
    ended = Ended(state=JobState.FAILED, reason="no", exit_code=1)
    assert RecordedEvent(**stamp, event=ended).facts == {"state": "FAILED", "reason": "no", "exit_code": 1}  # type: ignore[arg-type]


def test_an_event_that_lacks_a_fact_is_shown_as_it_is() -> None:
    document: JsonObject = {"time": "t", "term": 1, "generation": 1, "step": 30, "kind": "checkpoint_committed", "uri": "u"}
    read = decode(document, where=WHERE)
    assert read.event == UnknownEvent(kind="checkpoint_committed", facts={"uri": "u"})
    assert encode(read) == document
    whole = decode({**document, "checkpoint_step": 30}, where=WHERE)
    assert whole.event == CheckpointCommitted(checkpoint_step=Step(30), uri="u")


@pytest.mark.parametrize(
    ("change", "key", "given", "expected"),
    [
        ({"step": "7"}, "$.step", "str", "int"),
        ({"kind": 3}, "$.kind", "int", "str"),
        ({"kind": "ended", "state": "ASLEEP", "reason": ""}, "$.state", "Invalid enum value 'ASLEEP'", ""),
        ({"workers": [{"id": "w0", "rank": "0", "pid": 1, "node": "n"}]}, "$.workers[0].rank", "str", "int"),
    ],
)
def test_what_has_the_wrong_type_is_damage(change: JsonObject, key: str, given: str, expected: str) -> None:
    document: JsonObject = {"time": "t", "term": 1, "generation": 1, "step": 1, "kind": "workers_adopted", "workers": []}
    with pytest.raises(StoreDamaged) as caught:
        decode({**document, **change}, where=WHERE)
    assert (caught.value.where, caught.value.given, caught.value.expected) == (f"{WHERE}, {key}", given, expected)


def test_a_record_without_a_stamp_is_damage() -> None:
    with pytest.raises(StoreDamaged) as caught:
        decode({"kind": "stopping"}, where=WHERE)
    assert caught.value.given == "Object missing required field `time`"


def test_members_are_what_they_were() -> None:
    member = Member(id=WorkerId("w0"), node=None, pid=None, rank=0)
    assert decode(
        {
            "time": "t",
            "term": 1,
            "generation": 1,
            "step": 1,
            "kind": "workers_adopted",
            "workers": [{"id": "w0", "node": None, "pid": None, "rank": 0}],
        },
        where=WHERE,
    ).event == KINDS["workers_adopted"](workers=(member,))  # type: ignore[call-arg]
