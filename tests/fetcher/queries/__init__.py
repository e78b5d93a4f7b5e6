"""Tests: fetcher/queries."""
