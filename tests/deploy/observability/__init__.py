"""Tests of metrics, alerts and dashboards."""
