"""What each event says, by one table of phrases; an event that the table does not know is printed with its facts as they are."""

from __future__ import annotations

import math
from string import Formatter

from launcher.core.types import Json, Step
from launcher.jobs.changes import change_sentence, workers_words
from launcher.record.events import RecordedEvent, Resized

WHO = ("{worker}", "rank {rank}", "pid {pid} on {node}")
GROUP = ("{cause}", "generation {to_generation}", "{world_size}", "joining {joined}", "leaving {left}")
PHRASES: dict[str, tuple[str, ...]] = {
    "generation_prepared": (*GROUP, "{reason}"),
    "generation_withdrawn": (*GROUP, "{reason}", "{detail}"),
    "worker_lost": (*WHO, "{reason}", "{detail}"),
    "worker_evicted": (*WHO, "{reason}", "{detail}"),
    "worker_draining": (*WHO, "{reason}", "{detail}", "leaves within {deadline_s} s"),
    "worker_released": (*WHO, "{reason}", "{detail}"),
    "worker_error": (*WHO, "at step {at}", "{reason}", "{detail}"),
    "straggler": (*WHO, "takes {ratio} times as long as the others", "{reason}", "{detail}"),
    "policy": ("{decision}", "{reason}"),
    "workers_adopted": ("{workers}",),
}
"""By kind of event: what is said of its facts, a phrase only where it has them all. Facts without a phrase, and events
without a row, are printed as key=value. Those of `resized` have a sentence."""
_NOTHING: tuple[Json, ...] = (None, "", [], {})


def facts(recorded: RecordedEvent) -> str:
    """What an event says, after its stamp."""
    if isinstance(recorded.event, Resized):
        return _resized(recorded.event, recorded.step)
    told = recorded.facts
    phrases = [(phrase, {name for _, name, _, _ in Formatter().parse(phrase) if name}) for phrase in PHRASES.get(recorded.kind, ())]
    known = {key for _, keys in phrases for key in keys}
    words = {key: _fact_words(key, value) for key, value in told.items() if key in known and value not in _NOTHING}
    said = [(phrase, keys) for phrase, keys in phrases if keys <= words.keys()]
    used = {key for _, keys in said for key in keys} | (known - words.keys())
    sentence = ", ".join(phrase.format_map(words) for phrase, _ in said)
    rest = " ".join(f"{key}={fact(value)}" for key, value in told.items() if key not in used)
    return f"{sentence}  {rest}".strip()


def number(value: float | None) -> str:
    """Four digits; None, of which the record has only that it is not a number, in words."""
    if value is None:
        return "not finite"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def fact(value: Json) -> str:
    """A value of any kind, short: numbers with four digits, lists and objects without commas."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}={fact(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(fact(item) for item in value) + "]"
    return str(value)


def _resized(change: Resized, step: Step) -> str:
    members = [f"{word} {', '.join(workers)}" for word, workers in (("joined", change.joined), ("left", change.left)) if workers]
    return "; ".join([change_sentence(change, step), *members])


def _fact_words(name: str, value: Json) -> str:
    return workers_words(value) if name == "world_size" and isinstance(value, int) else _words(value)


def _words(value: Json) -> str:
    """A fact inside a phrase: lists without brackets, a worker by its id and process."""
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, dict) and "id" in value:
        return f"{value['id']} (rank {value.get('rank')}, pid {value.get('pid')} on {value.get('node')})"
    return fact(value)
