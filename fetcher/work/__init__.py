"""The fetcher's loops: lease, claim, call, settle, store."""
