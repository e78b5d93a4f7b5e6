"""Tests: fetcher/broker_client."""
