"""Metrics and diagnostics of the fetcher."""
