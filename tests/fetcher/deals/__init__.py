"""Tests: fetcher/deals."""
