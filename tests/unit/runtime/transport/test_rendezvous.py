"""Keys and values by which the ranks of a generation find each other: what reaches whom, and what is said again."""

from __future__ import annotations

import pytest

from launcher.core.types import Generation, WorkerId
from launcher.runtime.protocol.messages import GetKey, SetKey, Value
from launcher.runtime.transport.rendezvous import Rendezvous, RendezvousStore

pytestmark = pytest.mark.unit
W0, W1, W2 = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
ASK, TELL = GetKey(Generation(1), "0"), SetKey(Generation(1), "0", "eA==")


def test_values_reach_those_who_wait_and_no_other_generation() -> None:
    rendezvous = Rendezvous()
    assert rendezvous.heard(W1, GetKey(Generation(2), "0")) == []
    assert rendezvous.heard(W1, ASK) == []
    answer = Value(Generation(1), "0", "eA==")
    assert rendezvous.heard(W0, TELL) == [(W1, answer)]
    assert rendezvous.heard(W2, ASK) == [(W2, answer)]


def test_what_several_wait_for_is_one_object_for_all() -> None:
    rendezvous = Rendezvous()
    for worker in (W2, W1):
        rendezvous.heard(worker, ASK)
    (first, one), (second, other) = rendezvous.heard(W0, TELL)
    assert (first, second) == (W1, W2)
    assert one is other, "it is encoded once"


def test_what_is_forgotten_is_neither_known_nor_waited_for() -> None:
    rendezvous = Rendezvous()
    rendezvous.heard(W0, TELL)
    rendezvous.heard(W1, GetKey(Generation(1), "1"))
    rendezvous.heard(W1, GetKey(Generation(2), "0"))
    rendezvous.forget(Generation(2))
    assert rendezvous.heard(W0, SetKey(Generation(1), "1", "eA==")) == []
    assert rendezvous.heard(W2, ASK) == []
    assert rendezvous.heard(W0, SetKey(Generation(2), "0", "eA==")) == [(W1, Value(Generation(2), "0", "eA=="))]


def test_a_value_is_asked_for_once_and_repeated_to_a_new_controller() -> None:
    said: list[SetKey | GetKey] = []
    store = RendezvousStore(Generation(4), said.append)
    store.set("a", b"1")
    with pytest.raises(TimeoutError, match="generation 4"):
        store.get("b", timeout_s=0.0)
    store.repeat()
    assert said == [SetKey(Generation(4), "a", "MQ=="), GetKey(Generation(4), "b")] * 2
    store.answered(Value(Generation(3), "b", "eA=="))
    with pytest.raises(TimeoutError):
        store.get("b", timeout_s=0.0)
    store.answered(Value(Generation(4), "b", "eA=="))
    assert store.get("b", timeout_s=0.0) == b"x"
    store.repeat()
    assert said[-1] == SetKey(Generation(4), "a", "MQ=="), "what is known is not asked for again"
