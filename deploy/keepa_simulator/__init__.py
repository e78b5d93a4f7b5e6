"""A stand-in for api.keepa.com."""
