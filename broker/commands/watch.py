"""The bucket as it changes: a live view on a terminal, a line a change elsewhere."""

import time
from contextlib import nullcontext
from datetime import datetime
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from broker.commands.connection import TIMEOUT_S, Target, connect, explain
from broker.commands.inspect import PAGE_SIZE
from broker.commands.plain import to_json
from broker.commands.tables import bucket_line, bucket_table, lease_table, waiting_table
from protos.process.visible_text import visible
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

# On a terminal the countdown should move; a pipe wants changes.
LIVE_INTERVAL: Final = Duration(nanos=250_000_000)
LINE_INTERVAL: Final = Duration(seconds=1)
LINE_INTERVAL_MAX: Final = Duration(seconds=60)
RETRY_S: Final = 1.0
BAR_WIDTH: Final = 60
# Lines that are no table rows: the bucket, the bar, titles, headings, gaps.
FIXED_LINES: Final = 24
ROWS_MIN: Final = 4

Stub = pb_grpc.TokenBrokerServiceStub


class Lines:
    """A line a change."""

    request = pb.WatchBucketRequest(min_interval=LINE_INTERVAL, max_interval=LINE_INTERVAL_MAX)

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, _broker: Stub, bucket: pb.Bucket) -> None:
        """Print *bucket*."""
        if self._as_json:
            line = to_json(bucket, indent=None)
        else:
            line = f"{datetime.now().astimezone():%H:%M:%S} {bucket_line(bucket)}"
        print(line, flush=True)  # noqa: T201 - what the command is for

    def lost(self, reason: str) -> None:
        """Say that the broker is away; JSON has no word for that."""
        if not self._as_json:
            print(f"{datetime.now().astimezone():%H:%M:%S} {visible(reason)}", flush=True)  # noqa: T201 - as above


class Screen:
    """A view that redraws itself in place."""

    request = pb.WatchBucketRequest(min_interval=LIVE_INTERVAL, max_interval=LIVE_INTERVAL)

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: RenderableType = Text("")

    def show(self, broker: Stub, bucket: pb.Bucket) -> None:
        """Draw *bucket*, and as many leases and waits as there is room for."""
        page = broker.ListLeases(pb.ListLeasesRequest(page_size=PAGE_SIZE), timeout=TIMEOUT_S)
        rows = max(ROWS_MIN, self._live.console.height - FIXED_LINES)
        # Leases leave to the waits whatever they don't need, and vice versa.
        held = min(len(page.leases), max(rows // 2, rows - len(page.waiting)))
        self._last = Group(
            bucket_table(bucket),
            Text(),
            ProgressBar(total=max(1, bucket.capacity), completed=max(0, bucket.balance),
                        width=BAR_WIDTH),
            Text(),
            lease_table(list(page.leases[:held])),
            waiting_table(list(page.waiting[: rows - held])),
            Text(_left_out(page, held, rows - held), style="dim"),
        )  # fmt: skip
        self._live.update(self._last, refresh=True)

    def lost(self, reason: str) -> None:
        """Keep the last picture and say that it is old."""
        self._live.update(Group(self._last, Text(visible(reason), style="red")), refresh=True)


def watch(target: Target, *, as_json: bool) -> None:
    """Show the bucket until Ctrl-C; a broker that goes away is waited for.

    Raises:
        CommandError: there is no broker to begin with.
    """
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if as_json:
        live = None
    view = Screen(live) if live is not None else Lines(as_json=as_json)
    try:
        with connect(target) as broker, live or nullcontext():
            broker.GetBucket(pb.GetBucketRequest(), timeout=TIMEOUT_S)
            while True:
                _follow(broker, view, target)
                time.sleep(RETRY_S)
    except KeyboardInterrupt:
        # That is how one leaves.
        return


def _follow(broker: Stub, view: Screen | Lines, target: Target) -> None:
    """Show one stream to its end."""
    try:
        for message in broker.WatchBucket(view.request):
            view.show(broker, message.bucket)
    except grpc.RpcError as exc:
        view.lost(f"{explain(target, exc)}; trying again")


def _left_out(page: pb.ListLeasesResponse, held: int, waits: int) -> str:
    leases, waiting = max(0, len(page.leases) - held), max(0, len(page.waiting) - waits)
    more = f"{leases} more leases, {waiting} more waiting. " if leases or waiting else ""
    return f"{more}Ctrl-C ends."
