"""Who may call the broker: identities, roles, TLS and the files that hold them."""
