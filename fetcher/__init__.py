"""Stateless fetchers: lease, call, settle, write."""

import protos  # noqa: F401 - before grpc, whose core it quiets
