"""Tests: fetcher/console."""
