"""Telemetry of the broker: metrics, health over HTTP, log lines."""
