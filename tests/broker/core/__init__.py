"""Tests: broker/core."""
