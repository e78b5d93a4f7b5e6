"""Tests: broker/journal."""
