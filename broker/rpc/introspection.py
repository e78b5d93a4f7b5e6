"""Health, reflection and channelz, on the same port as the service itself.

Health of `""` is that of the process. The named service is SERVING while the broker leads
and has read a balance from Keepa.
"""

from typing import Any, Final

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from broker.runtime import BrokerRuntime
from protos.tokenbroker.v1 import token_broker_pb2 as pb

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["TokenBrokerService"].full_name
# The module channelz defines no SERVICE_NAME.
CHANNELZ_NAME: Final = "grpc.channelz.v1.Channelz"
REFLECTION_NAME: Final = reflection.SERVICE_NAME

NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING: Final = health_pb2.HealthCheckResponse.SERVING


class Introspection:
    """The services with which tools and orchestrators examine a gRPC server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._states: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # no aio stubs
        health_pb2_grpc.add_HealthServicer_to_server(self._states, server)
        channelz.add_channelz_servicer(server)  # type: ignore[arg-type]  # it takes aio servers too
        names = (SERVICE_NAME, health.SERVICE_NAME, CHANNELZ_NAME, REFLECTION_NAME)
        reflection.enable_server_reflection(names, server)

    async def follow(self, runtime: BrokerRuntime) -> None:
        """Reports whether *runtime* serves, at every change, until cancelled."""
        with runtime.watching(readiness=True) as changed:
            while True:
                changed.clear()
                await self._states.set(SERVICE_NAME, SERVING if runtime.ready else NOT_SERVING)
                await changed.wait()

    async def stop(self) -> None:
        """Reports NOT_SERVING for all services, for good."""
        await self._states.enter_graceful_shutdown()
