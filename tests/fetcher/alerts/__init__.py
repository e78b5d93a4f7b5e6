"""Tests: fetcher/alerts."""
