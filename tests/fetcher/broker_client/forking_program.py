"""A program that forks while it has a client; prints what parent and child came to.

Usage: python -m tests.fetcher.broker_client.forking_program ADDRESS
"""

import os
import sys
import time

from fetcher.broker_client import BrokerClient, ForkedError, Lease

CALL_S = 3.0


def show(text: str) -> None:
    """One line, whole, whatever process writes it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def attempt(work: str, client: BrokerClient, lease: Lease) -> str:
    """What *work* in the child leads to."""
    try:
        match work:
            case "lease":
                with client.lease("deal"):
                    return "leased"
            case "bucket":
                client.get_bucket()
            case "calling":
                lease.calling()
            case "settle":
                lease.settle_not_sent()
                client.stop_waiting()
                client.close()
                return "does nothing"
    except ForkedError as exc:
        return str(exc)
    return "done"


def child(address: str, client: BrokerClient, lease: Lease) -> None:
    """The parent's client refuses; one of its own works, and is renewed."""
    for work in ("lease", "bucket", "calling", "settle"):
        show(f"{work}: {attempt(work, client, lease)}")
    with BrokerClient(address, holder="child", ttl_s=1.0) as own, own.lease("deal") as mine:
        mine.calling()
        time.sleep(CALL_S)
        show(f"own: {mine.time_left > 0}")
        mine.settle_unknown()


def main() -> None:
    """Fork inside a lease, and end it in the parent."""
    address = sys.argv[1]
    with (
        BrokerClient(address, holder="parent", ttl_s=1.0) as client,
        client.lease("deal") as lease,
    ):
        pid = os.fork()
        if pid == 0:
            child(address, client, lease)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        show(f"parent: {lease.time_left > 0}, child: {status}")
        lease.calling()
        lease.settle_unknown()


if __name__ == "__main__":
    main()
