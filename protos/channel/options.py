"""The options of both ends of the channel between broker and clients.

gRPC ignores options with unknown names: a test compares every name with the library's
own, and another shows the effect of each.
"""

from collections.abc import Sequence
from typing import Final

Options = Sequence[tuple[str, int | str]]

# A restarted broker waits a few seconds for living clients to renew: be back in time.
RECONNECT_MIN_MS: Final = 100
RECONNECT_MAX_MS: Final = 1_000
# Longest time to set up one connection: TCP, TLS, and the broker's first frame. The option
# is called min_reconnect_backoff, but bounds a single attempt; it delays no further one.
CONNECT_TIMEOUT_MS: Final = 15_000

# The same for a client with several addresses, which tries the next one afterwards.
CONNECT_TIMEOUT_SEVERAL_MS: Final = 4_000

# After both together, the loss of a silent peer is noticed: a standby leads by then.
PING_EVERY_MS: Final = 8_000
PING_TIMEOUT_MS: Final = 5_000

KEEPALIVE: Final[Options] = (
    ("grpc.keepalive_time_ms", PING_EVERY_MS),
    # Longest wait for the answer to a ping. keepalive_timeout alone has no effect while
    # this one has its default of a minute.
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    # Pings go on through a wait in which no data flows. The default allows two.
    ("grpc.http2.max_pings_without_data", 0),
)

CLIENT: Final[Options] = (
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    *KEEPALIVE,
    # The client itself repeats a lease request, under the same id.
    ("grpc.enable_retries", 0),
    # Connections are not shared between clients of one process, so closing is local.
    ("grpc.use_local_subchannel_pool", 1),
)

SEVERAL: Final[Options] = (
    *(option for option in CLIENT if option[0] != "grpc.min_reconnect_backoff_ms"),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_SEVERAL_MS),
)

# A name may stand for several brokers, of which one leads: each new channel begins with
# another of their addresses. Source: gRFC A62, "pick_first: sticky TRANSIENT_FAILURE and
# address order randomization".
ANY_FIRST: Final = (
    "grpc.service_config",
    '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}',
)

SERVER: Final[Options] = (
    # Two brokers on one port would each grant the same tokens.
    ("grpc.so_reuseport", 0),
    *KEEPALIVE,
    # Clients may ping this often, also while nothing but a wait is under way.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A fleet that comes back at once is let in, not thinned out with
    # RESOURCE_EXHAUSTED (the defaults: by chance from 1,000, all from 3,000).
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A connection that never sends its HTTP/2 preface is closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # So is one without a call; gRPC's clients open the next one with the next call.
    ("grpc.max_connection_idle_ms", 300_000),
    # An old connection takes no new call, so that its client signs in again. A wait has
    # the time of grace on it, then comes back under its id and keeps its place.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 900_000),
    # A fleet's clients have a connection each; a gateway waits for thousands on one.
    ("grpc.max_concurrent_streams", 4_096),
)
