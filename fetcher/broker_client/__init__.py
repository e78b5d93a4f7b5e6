"""A client of the token broker for any Python program; needs nothing else of the fetcher.

    from fetcher.broker_client import BrokerClient, Envelope

    with BrokerClient("127.0.0.1:50051") as broker:
        with broker.lease("deal", units=1, tokens_per_unit=5) as lease:
            lease.calling()
            reply = session.get(url, timeout=(30, 120))
            lease.settle_replied(Envelope.from_body(reply.json()))

Entering the block waits, in the broker, until the tokens are there. Leaving it
without a settle means "not sent", or "cost unknown" after `calling`.
A background thread renews open leases and repeats settles that the broker has
not taken yet. All methods of `BrokerClient` may be called from any thread.

In an asyncio program the same verbs are awaited, and nothing blocks the loop:

    async with AsyncBrokerClient("127.0.0.1:50051") as broker:
        async with broker.lease("deal", units=1, tokens_per_unit=5) as lease:
            lease.calling()
            reply = await session.get(url)
            await lease.settle_replied(Envelope.from_body(await reply.json()))

A client belongs to the process that made it: after a fork the child makes its own.

Against a broker with TLS, add ``access=Access(ca_file=…, cert_file=…, key_file=…)`` or
``access=Access(ca_file=…, token_file=…)``.
"""

from fetcher.broker_client.aio import AsyncBrokerClient
from fetcher.broker_client.client import BrokerClient
from fetcher.broker_client.errors import (
    BrokerAwayError,
    BrokerClientError,
    BrokerRefusedError,
    ClosedError,
    ForkedError,
    KeyMismatchError,
    LeaseDeniedError,
    LeaseLostError,
    WaitCancelledError,
)
from fetcher.broker_client.lease import AsyncLease, Lease
from fetcher.broker_client.wire import BucketView, CallerView, OnBehalf, Priority
from fetcher.replies.envelope import Envelope
from protos.channel.access import Access
from protos.channel.credential_files import CredentialError

__all__ = [
    "Access",
    "AsyncBrokerClient",
    "AsyncLease",
    "BrokerAwayError",
    "BrokerClient",
    "BrokerClientError",
    "BrokerRefusedError",
    "BucketView",
    "CallerView",
    "ClosedError",
    "CredentialError",
    "Envelope",
    "ForkedError",
    "KeyMismatchError",
    "Lease",
    "LeaseDeniedError",
    "LeaseLostError",
    "OnBehalf",
    "Priority",
    "WaitCancelledError",
]
