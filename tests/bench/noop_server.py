"""A gRPC service of the broker's shape that does nothing: the yardstick for the broker.

Prints its port, and serves until it is stopped.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc
import uvloop

from protos.channel import options
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc


class NoopService(pb_grpc.TokenBrokerServiceServicer):
    """Grants everything, and takes every settle."""

    async def AcquireLease(  # noqa: N802 - gRPC's name
        self,
        request: pb.AcquireLeaseRequest,
        context: grpc.aio.ServicerContext[pb.AcquireLeaseRequest, pb.AcquireLeaseResponse],
    ) -> pb.AcquireLeaseResponse:
        """Grants at once."""
        del context
        grant = pb.Grant(lease_id=request.lease_id, epoch=1, units=1, tokens=5)
        grant.ttl.FromMilliseconds(15_000)
        return pb.AcquireLeaseResponse(grant=grant)

    async def SettleLease(  # noqa: N802 - gRPC's name
        self,
        request: pb.SettleLeaseRequest,
        context: grpc.aio.ServicerContext[pb.SettleLeaseRequest, pb.SettleLeaseResponse],
    ) -> pb.SettleLeaseResponse:
        """Takes the settle."""
        del request, context
        return pb.SettleLeaseResponse()


async def session(
    requests: AsyncIterator[pb.AcquireLeaseRequest],
    context: grpc.aio.ServicerContext[pb.AcquireLeaseRequest, pb.AcquireLeaseResponse],
) -> AsyncIterator[pb.AcquireLeaseResponse]:
    """Grants in the order of the requests: what one stream in place of calls could give."""
    del context
    async for request in requests:
        grant = pb.Grant(lease_id=request.lease_id, epoch=1, units=1, tokens=5)
        grant.ttl.FromMilliseconds(15_000)
        yield pb.AcquireLeaseResponse(grant=grant)


SESSION: Final = grpc.method_handlers_generic_handler(
    "bench.Noop",
    {
        "Session": grpc.stream_stream_rpc_method_handler(
            session,
            request_deserializer=pb.AcquireLeaseRequest.FromString,
            response_serializer=pb.AcquireLeaseResponse.SerializeToString,
        )
    },
)


async def serve() -> None:
    """Serves on a free port of this machine."""
    server = grpc.aio.server(options=options.SERVER)
    pb_grpc.add_TokenBrokerServiceServicer_to_server(NoopService(), server)  # type: ignore[abstract]  # two RPCs are enough here
    server.add_generic_rpc_handlers((SESSION,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)  # noqa: T201 - its parent reads it
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve())
