"""Tests: broker/telemetry."""
