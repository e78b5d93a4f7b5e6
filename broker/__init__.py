"""The token broker: one authoritative count for one Keepa account."""
