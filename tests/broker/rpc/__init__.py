"""Tests: broker/rpc."""
