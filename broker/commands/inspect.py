"""Commands with one RPC and one output: status, leases, sync, pause, resume."""

import json
import sys

from broker.commands.connection import SYNC_TIMEOUT_S, TIMEOUT_S, Target, connect
from broker.commands.plain import plain, to_json
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

PAGE_SIZE = 1_000
PAUSE_NOTE = (
    "A restart of the broker ends the pause, unless it keeps a journal (BROKER_DATABASE_URL) or"
    " BROKER_START_PAUSED=true is set for it."
)


def status(target: Target, *, as_json: bool) -> None:
    """Prints the bucket."""
    with connect(target) as broker:
        bucket = broker.GetBucket(pb.GetBucketRequest(), timeout=TIMEOUT_S).bucket
    _show(bucket, as_json=as_json)


def sync(target: Target, *, as_json: bool) -> None:
    """Makes the broker ask Keepa, and prints the bucket."""
    with connect(target) as broker:
        bucket = broker.SyncBucket(pb.SyncBucketRequest(), timeout=SYNC_TIMEOUT_S).bucket
    _show(bucket, as_json=as_json)


def pause(target: Target, *, as_json: bool) -> None:
    """Stops granting, and prints the bucket."""
    with connect(target) as broker:
        bucket = broker.PauseGrants(pb.PauseGrantsRequest(), timeout=TIMEOUT_S).bucket
    _show(bucket, as_json=as_json)
    # On stderr, so that stdout is JSON only.
    print(PAUSE_NOTE, file=sys.stderr)  # noqa: T201 - for the operator at the terminal


def resume(target: Target, *, as_json: bool) -> None:
    """Resumes granting, and prints the bucket."""
    with connect(target) as broker:
        bucket = broker.ResumeGrants(pb.ResumeGrantsRequest(), timeout=TIMEOUT_S).bucket
    _show(bucket, as_json=as_json)


def leases(target: Target, *, as_json: bool) -> None:
    """Prints all leases and waiting requests."""
    with connect(target) as broker:
        held, waits = all_leases(broker)
    if as_json:
        entries = {"leases": [plain(e) for e in held], "waiting": [plain(e) for e in waits]}
        print(json.dumps(entries, indent=2))  # noqa: T201 - what the command is for
        return
    # As in _show.
    from broker.commands import tables  # noqa: PLC0415 - see there

    tables.print_leases(held, waits)


def all_leases(
    broker: pb_grpc.TokenBrokerServiceStub,
) -> tuple[list[pb.Lease], list[pb.Waiting]]:
    """Reads all pages; returns an entry that moves between two reads once."""
    held: dict[str, pb.Lease] = {}
    waits: dict[str, pb.Waiting] = {}
    token, more = "", True
    while more:
        request = pb.ListLeasesRequest(page_size=PAGE_SIZE, page_token=token)
        page = broker.ListLeases(request, timeout=TIMEOUT_S)
        held.update({lease.lease_id: lease for lease in page.leases})
        waits.update({wait.lease_id: wait for wait in page.waiting})
        token = page.next_page_token
        more = bool(token)
    return list(held.values()), list(waits.values())


def _show(bucket: pb.Bucket, *, as_json: bool) -> None:
    if as_json:
        print(to_json(bucket))  # noqa: T201 - what the command is for
        return
    # A program that reads JSON, often every few seconds, does not wait for rich.
    from broker.commands import tables  # noqa: PLC0415 - see above

    tables.print_bucket(bucket)
