"""Tests: broker/access."""
