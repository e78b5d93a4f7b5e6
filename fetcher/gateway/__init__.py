"""The gateway: an HTTP server that speaks Keepa's API and leases the tokens of every call."""
