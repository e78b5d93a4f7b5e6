"""A stand-in for api.keepa.com that a client can't tell apart from the real one."""
