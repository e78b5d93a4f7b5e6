"""The broker's own page: tokens, leases, waits, spend."""
