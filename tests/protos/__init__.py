"""Tests: protos."""
