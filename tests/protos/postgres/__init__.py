"""Tests: protos/postgres."""
