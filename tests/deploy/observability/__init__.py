"""Tests of what is measured: metrics, alerts, dashboards."""
