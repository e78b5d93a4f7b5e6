"""The log of all calls, with the tokens that each moved.

Memory holds the newest calls, compressed, so a long run stays small. A journal file gets
all of them, one JSON object per line.
"""

import json
import zlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import IO, Any

# Enough for many hours at any real plan's rate.
CALLS_KEPT = 20_000


@dataclass(slots=True)
class Call:
    """One call as the simulator saw it.

    Args:
        seq: 1 for the first call.
        time_ms: Time of arrival, Unix milliseconds.
        account: Fingerprint of the key; empty for a key that has no account.
        status: HTTP status of the reply, or None if none was sent.
        before: Balance when the call arrived.
        after: Balance when the reply was ready.
        consumed: Tokens that the call cost.
        duration_ms: Time from the call to the reply.
        faults: The faults that affected it.
        delivered: Whether the connection took the whole reply.
        selection: What the call asked for, also if it was refused; None where nothing is selected.
        rows: Deals served: (domain, asin, lastUpdate, creationDate).
        asins: Products served.
    """

    seq: int
    time_ms: int
    account: str
    method: str
    path: str
    status: int | None = None
    before: int | None = None
    after: int | None = None
    consumed: int = 0
    duration_ms: int = 0
    faults: list[str] = field(default_factory=list)
    delivered: bool = False
    selection: str | None = None
    rows: list[tuple[int, str, int, int]] = field(default_factory=list)
    asins: list[str] = field(default_factory=list)


class Journal:
    """The calls of this run.

    Args:
        file: Gets every finished call as well; None: memory only.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self.by_path: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self._file = file
        self._last_seq = 0
        self._open: dict[int, Call] = {}
        self._finished: deque[tuple[int, bytes]] = deque(maxlen=CALLS_KEPT)

    def load(self, lines: Iterable[str]) -> None:
        """Takes back the calls of an earlier process, as its file has them."""
        for line in lines:
            try:
                call = Call(**json.loads(line))
            except ValueError:
                # The process was killed while it wrote this line.
                continue
            self.by_path[call.path] += 1
            self._last_seq = max(self._last_seq, call.seq)
            self._remember(call, line)

    def _remember(self, call: Call, text: str) -> None:
        self.by_status[str(call.status)] += 1
        self._finished.append((call.seq, zlib.compress(text.encode(), 1)))

    def begin(self, *, time_ms: int, account: str, method: str, path: str) -> Call:
        """Records the arrival of a call."""
        self._last_seq += 1
        call = Call(self._last_seq, time_ms, account, method, path)
        self._open[call.seq] = call
        self.by_path[path] += 1
        return call

    def finish(self, call: Call) -> None:
        """Records that nothing more will be sent in answer to *call*."""
        text = json.dumps(asdict(call))
        del self._open[call.seq]
        self._remember(call, text)
        if self._file is not None:
            self._file.write(text + "\n")
            self._file.flush()

    def since(self, seq: int, limit: int) -> dict[str, Any]:
        """At most *limit* calls after number *seq*, in order, and the next *seq* to ask from.

        An unfinished call is returned in its present state. Its final state appears only to
        a caller that asks again from before it.
        """
        known = [
            (number, json.loads(zlib.decompress(blob)))
            for number, blob in self._finished
            if number > seq
        ]
        known += [(number, asdict(call)) for number, call in self._open.items() if number > seq]
        known.sort(key=lambda item: item[0])
        page = known[:limit]
        return {
            "calls": [call for _, call in page],
            "next": page[-1][0] if page else seq,
            "last": self._last_seq,
            "oldest_kept": self._finished[0][0] if self._finished else 1,
        }
