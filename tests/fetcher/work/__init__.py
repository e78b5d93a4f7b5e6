"""Tests: fetcher/work."""
