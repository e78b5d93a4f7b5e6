"""The token broker: one authoritative count for one Keepa account."""

import protos  # noqa: F401 - before grpc, whose core it quiets
