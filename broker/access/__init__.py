"""Access to the broker: identities, roles, TLS, budgets and their files."""
