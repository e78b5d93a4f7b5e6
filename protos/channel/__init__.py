"""How a client connects to the broker: TLS, its certificate or token."""
