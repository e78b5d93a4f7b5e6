"""Stateless fetchers: lease, call, settle, write."""

import protos  # noqa: F401 - before grpc: it quiets grpc's core
