"""The broker beside other ways to share one Keepa account, in virtual time."""
