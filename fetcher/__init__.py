"""Stateless fetchers: lease, call, settle, write."""
