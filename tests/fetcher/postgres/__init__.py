"""Tests: fetcher/postgres."""
