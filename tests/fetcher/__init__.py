"""Tests: fetcher."""
