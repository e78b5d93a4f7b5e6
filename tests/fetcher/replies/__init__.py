"""Tests: fetcher/replies."""
