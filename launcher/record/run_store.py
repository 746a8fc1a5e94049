"""The keys of one run in the store, and the documents under them.

RUNS/RUN_ID/
    spec-1.json                 immutable
    code/SHA256.zip             the user's code
    packages/SHA256.txt         the packages that it needs beside the image's, in pip's format
    desired/REVISION.json       what people want; created, never changed
    terms/T.json, T-base.json   the term of a controller and what it builds on; created, never changed
    status/T.json               overwritten by that term's controller only
    events/T-SEQ.jsonl          and metrics/, logs/ alike: append-only, in segments
    checkpoints/STEP-T.json     manifests
    blobs/SHA256                chunks
    trash/ID.json               what is about to be deleted
RUNS/names/NAME.json            which run has the name; its creation, last of a submit, is what makes a run exist

Numbers in keys are zero-padded to 12 digits, so that listing sorts them.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Literal

from launcher.core.errors import StoreDamaged
from launcher.core.store import KeyMissing, ObjectStore
from launcher.core.types import Json, JsonObject, RunId, Term
from launcher.record.desired import Desired
from launcher.record.encoding import encode
from launcher.record.lineage import TermBase
from launcher.record.parsing import parsed
from launcher.record.status import RunStatus

STATUS_INTERVAL_S = 2.0
LEASE_S = 10.0
Stream = Literal["events", "metrics", "logs"]

# What else lies in a folder, such as what a file manager leaves there, is passed over.
_DESIRED = re.compile(r"\d{12}\.json")
_TERM = re.compile(r"(\d{12})(-base)?\.json")
_SEGMENT = re.compile(r"(\d{12})-(\d{12})\.jsonl")


def padded(number: int) -> str:
    """A number as keys have it: 12 digits, so that keys sort by it."""
    return f"{number:012d}"


class RunStore:
    """One run's part of a store: keys and documents, no decisions."""

    def __init__(self, store: ObjectStore, run_id: RunId) -> None:
        self.store = store
        self.run_id = run_id

    def key(self, path: str) -> str:
        return f"{self.run_id}/{path}"

    @property
    def uri(self) -> str:
        """Where the run's record is."""
        return f"{self.store.uri.rstrip('/')}/{self.run_id}"

    def _place(self, path: str) -> str:
        return f"{self.uri}/{path}"

    # documents

    def read(self, path: str) -> JsonObject | None:
        """A document, or None when it is not there. Raises StoreDamaged when it is no JSON object."""
        try:
            data = self.store.get(self.key(path))
        except KeyMissing:
            return None
        return self._parsed(data, path)

    def _parsed(self, data: bytes, path: str) -> JsonObject:
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise StoreDamaged(
                "an object in the run store is not what was written there",
                where=self._place(path),
                given=f"{len(data)} bytes" + (f" that begin with {data[:40]!r}" if data else ""),
                expected="a JSON object",
                next="restore the file from a copy; where there is none, start the run anew",
            )
        return document

    def claim(self, path: str, document: Mapping[str, Json]) -> bool:
        """Create a document once; True for the one winner, also when the answer to its write was lost."""
        signed = {**document, "nonce": secrets.token_hex(8)}
        if self.store.create(self.key(path), encode(signed)):
            return True
        existing = self.read(path)
        return existing is not None and existing.get("nonce") == signed["nonce"]

    def names(self, folder: str) -> list[str]:
        """Names of the objects directly or deeper under a folder of the run, relative to the folder, sorted."""
        prefix = self.key(folder) + "/"
        return [item.key.removeprefix(prefix) for item in self.store.list(self.key(folder))]

    # spec and desired state

    def spec(self, number: int) -> JsonObject | None:
        """A spec, or None when it is not there. Raises StoreDamaged."""
        return self.read(f"spec-{number}.json")

    def desired(self) -> Desired | None:
        """The newest revision, or None. Raises StoreDamaged when it is not whole."""
        names = [name for name in self.names("desired") if _DESIRED.fullmatch(name)]
        return self._desired_at(names[-1]) if names else None

    def _desired_at(self, name: str) -> Desired:
        path = f"desired/{name}"
        document = self.read(path) or {}
        return parsed({**document, "revision": int(name.removesuffix(".json"))}, Desired, where=self._place(path))

    def create_desired(self, wanted: Desired) -> bool:
        """Record a revision; False when somebody else has created it (read again, decide again)."""
        document = asdict(wanted)
        del document["revision"]
        return self.claim(f"desired/{padded(wanted.revision)}.json", document)

    # terms

    def terms(self) -> tuple[Term, dict[Term, TermBase]]:
        """The highest claimed term (0 when none) and the bases of all terms that have one. Raises StoreDamaged."""
        highest = 0
        bases: dict[Term, TermBase] = {}
        for number, name in self._term_names():
            highest = max(highest, number)
            if name.endswith("-base.json"):
                path = f"terms/{name}"
                bases[Term(number)] = parsed(self.read(path), TermBase, where=self._place(path))
        return Term(highest), bases

    def highest_term(self) -> Term:
        """The highest claimed term, with or without a base; 0 when there is none."""
        return Term(max((number for number, _ in self._term_names()), default=0))

    def _term_names(self) -> list[tuple[int, str]]:
        return [(int(match[1]), name) for name in self.names("terms") if (match := _TERM.fullmatch(name))]

    def claim_term(self, holder: str, started_at: str) -> Term:
        """Take the next free term. The claim alone makes nothing visible: create the base after looking."""
        term = self.highest_term()
        while True:
            term = Term(term + 1)
            if self.claim_just(term, holder, started_at):
                return term

    def claim_just(self, term: Term, holder: str, started_at: str) -> bool:
        """Take this term and no other; False when somebody has it: what the claim was to rest on has changed, look again."""
        return self.claim(f"terms/{padded(term)}.json", {"holder": holder, "started_at": started_at})

    def create_base(self, term: Term, base: TermBase) -> bool:
        """Say what a term builds on, once, by its holder, who may call again with the same base after StoreUnavailable.

        False when the term has another base.
        """
        document = {**asdict(base), "workers": list(base.workers)}
        path = f"terms/{padded(term)}-base.json"
        return self.claim(path, document) or document.items() <= (self.read(path) or {}).items()

    # status

    def status(self, term: Term) -> RunStatus | None:
        """What the holder of a term wrote last, or None. Raises StoreDamaged when it is not whole."""
        path = f"status/{padded(term)}.json"
        document = self.read(path)
        return RunStatus.from_json(document, where=self._place(path)) if document is not None else None

    def put_status(self, term: Term, status: RunStatus) -> None:
        """Replace what the holder of a term wrote before. Called by that holder alone."""
        self.store.put(self.key(f"status/{padded(term)}.json"), encode(status.to_json()))

    # segments

    def put_segment(self, stream: Stream, term: Term, sequence: int, records: Iterable[Mapping[str, Json]]) -> None:
        """Write one segment; the same segment may be written again with the same content after a lost answer."""
        self.store.put(
            self.key(f"{stream}/{padded(term)}-{padded(sequence)}.jsonl"), b"".join(encode(record) + b"\n" for record in records)
        )

    def segments(self, stream: Stream) -> list[tuple[Term, int, str]]:
        """(term, sequence, name) of every segment of a stream, in order."""
        found = [match for name in self.names(stream) if (match := _SEGMENT.fullmatch(name))]
        return [(Term(int(match[1])), int(match[2]), match[0]) for match in found]

    def segment(self, stream: Stream, name: str) -> list[JsonObject]:
        """Raises KeyMissing, and StoreDamaged when a line is no JSON object."""
        path = f"{stream}/{name}"
        return [self._parsed(line, path) for line in self.store.get(self.key(path)).split(b"\n") if line]
