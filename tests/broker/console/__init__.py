"""Tests: broker/console."""
