"""Tests: fetcher/scans."""
