"""What a fetcher shows of itself: metrics and diagnostics."""
