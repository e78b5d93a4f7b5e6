"""A program that leaves its clients to a forked pool; prints what comes of it.

Usage: python -m tests.fetcher.broker_client.pooling_program ADDRESS
"""

import asyncio
import multiprocessing
import sys
from multiprocessing.connection import Connection

from fetcher.broker_client import AsyncBrokerClient, BrokerClient, ForkedError


def show(text: str) -> None:
    """One line, whole, whatever process writes it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def blocking(client: BrokerClient, results: Connection) -> None:
    """Uses the blocking client in the child."""
    try:
        with client.lease("deal"):
            results.send("leased")
    except ForkedError as exc:
        results.send(str(exc))


def awaiting(client: AsyncBrokerClient, results: Connection) -> None:
    """Uses the asyncio client in the child, in a loop of its own."""

    async def use() -> None:
        async with client.lease("deal"):
            results.send("leased")

    try:
        asyncio.run(use())
    except ForkedError as exc:
        results.send(str(exc))


def in_a_child(work: object, client: object) -> str:
    """The answer of *work* in a forked process."""
    here, there = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=work, args=(client, there))  # type: ignore[arg-type]
    process.start()
    answer = str(here.recv()) if here.poll(40) else "nothing"
    process.kill()
    process.join()
    return answer


async def make(address: str) -> AsyncBrokerClient:
    """A client that is connected."""
    client = AsyncBrokerClient(address)
    async with client.lease("deal"):
        return client


def main() -> None:
    """Tries both clients."""
    address = sys.argv[1]
    with BrokerClient(address) as client:
        show(f"fork: {in_a_child(blocking, client)}")
    loop = asyncio.new_event_loop()
    other = loop.run_until_complete(make(address))
    show(f"asyncio: {in_a_child(awaiting, other)}")
    loop.run_until_complete(other.close())


if __name__ == "__main__":
    main()
