"""The token broker: one authoritative count for one Keepa account."""

import protos  # noqa: F401 - must precede grpc: it quiets the log of grpc's core
