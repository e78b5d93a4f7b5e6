"""A stand-in for api.keepa.com; a client sees no difference from the real one."""
