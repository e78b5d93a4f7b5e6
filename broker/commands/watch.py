"""Shows the bucket as it changes: live on a terminal, else one line per change."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from threading import Event
from typing import Final

from google.protobuf.duration_pb2 import Duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from broker.commands.connection import TIMEOUT_S, CommandError, Target, connect
from broker.commands.inspect import PAGE_SIZE
from broker.commands.plain import to_json
from broker.commands.tables import bucket_line, bucket_table, lease_table, waiting_table
from protos.process.visible_text import visible
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

# A terminal shows a moving countdown; a pipe gets changes only.
LIVE_INTERVAL: Final = Duration(nanos=250_000_000)
LINE_INTERVAL: Final = Duration(seconds=1)
LINE_INTERVAL_MAX: Final = Duration(seconds=60)
RETRY_S: Final = 1.0
BAR_WIDTH: Final = 60
# Lines besides the rows of both tables: the bucket, the bar, titles, headings, gaps.
FIXED_LINES: Final = 24
ROWS_MIN: Final = 4

Stub = pb_grpc.TokenBrokerServiceStub


class Lines:
    """One line per change."""

    request = pb.WatchBucketRequest(min_interval=LINE_INTERVAL, max_interval=LINE_INTERVAL_MAX)

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, _broker: Stub, bucket: pb.Bucket) -> None:
        """Prints *bucket*."""
        if self._as_json:
            line = to_json(bucket, indent=None)
        else:
            line = f"{datetime.now().astimezone():%H:%M:%S} {bucket_line(bucket)}"
        print(line, flush=True)  # noqa: T201 - what the command is for

    def lost(self, reason: str) -> None:
        """Prints that the broker is away, except as JSON, which has buckets only."""
        if not self._as_json:
            print(f"{datetime.now().astimezone():%H:%M:%S} {visible(reason)}", flush=True)  # noqa: T201 - as above


class Screen:
    """A view that is redrawn in place."""

    request = pb.WatchBucketRequest(min_interval=LIVE_INTERVAL, max_interval=LIVE_INTERVAL)

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: RenderableType = Text("")

    def show(self, broker: Stub, bucket: pb.Bucket) -> None:
        """Draws *bucket*, and as many leases and waits as fit."""
        page = broker.ListLeases(pb.ListLeasesRequest(page_size=PAGE_SIZE), timeout=TIMEOUT_S)
        rows = max(ROWS_MIN, self._live.console.height - FIXED_LINES)
        # Each of the two tables may use the rows that the other one does not need.
        held = min(len(page.leases), max(rows // 2, rows - len(page.waiting)))
        waits = min(len(page.waiting), rows - held)
        more_leases, more_waits = len(page.leases) - held, len(page.waiting) - waits
        left_out = f"{more_leases} more leases, {more_waits} more waiting. "
        self._last = Group(
            bucket_table(bucket),
            Text(),
            ProgressBar(total=max(1, bucket.capacity), completed=max(0, bucket.balance),
                        width=BAR_WIDTH),
            Text(),
            lease_table(list(page.leases[:held])),
            waiting_table(list(page.waiting[:waits])),
            Text(f"{left_out if more_leases or more_waits else ''}Ctrl-C ends.", style="dim"),
        )  # fmt: skip
        self._live.update(self._last, refresh=True)

    def lost(self, reason: str) -> None:
        """Adds *reason* below the last picture."""
        self._live.update(Group(self._last, Text(visible(reason), style="red")), refresh=True)


class Stop:
    """Ends the watch at Ctrl-C, by cancelling the stream.

    An exception in the midst of gRPC's own code, and a channel that closes under an open
    stream, have let the process abort now and then: gRPC frees what its threads still use.
    """

    def __init__(self) -> None:
        self._pressed = Event()
        self._cancel: Callable[[], object] | None = None

    def press(self, *_: object) -> None:
        """Handles SIGINT; a second one raises KeyboardInterrupt."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._pressed.set()
        if self._cancel is not None:
            self._cancel()

    @contextmanager
    def ends(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Lets Ctrl-C call a stream's *cancel* meanwhile; no stream outlives this."""
        self._cancel = cancel
        if self._pressed.is_set():
            cancel()
        try:
            yield
        finally:
            self._cancel = None
            cancel()

    def wait(self, seconds: float) -> bool:
        """Returns whether Ctrl-C was pressed before *seconds* are over."""
        return self._pressed.wait(seconds)


def watch(target: Target, *, as_json: bool) -> None:
    """Shows the bucket until Ctrl-C; reconnects to a broker that went away.

    Raises:
        CommandError: no broker answers at the start.
    """
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if as_json:
        live = None
    view = Screen(live) if live is not None else Lines(as_json=as_json)
    try:
        with connect(target) as broker:
            # An error at the start ends the command.
            broker.GetBucket(pb.GetBucketRequest(), timeout=TIMEOUT_S)
        stop = Stop()
        signal.signal(signal.SIGINT, stop.press)
        with live or nullcontext():
            _follow(target, view, stop)
    except KeyboardInterrupt:
        # Ctrl-C is the intended end.
        return


def _follow(target: Target, view: Lines | Screen, stop: Stop) -> None:
    while not stop.wait(0):
        try:
            with connect(target) as broker:
                stream = broker.WatchBucket(view.request)
                with stop.ends(stream.cancel):
                    for message in stream:
                        view.show(broker, message.bucket)
                        if message.bucket.state == pb.BUCKET_STATE_STANDBY:
                            # Another broker may lead by now.
                            break
        except CommandError as exc:
            if stop.wait(0):
                return
            view.lost(f"{exc}; trying again")
        stop.wait(RETRY_S)
