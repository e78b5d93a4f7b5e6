"""Commands of `tokenbroker` that show a running broker and control it."""
