"""Postgres for broker and fetcher alike: URLs, connections, errors and migrations."""
