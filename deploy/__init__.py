"""Everything that runs the system somewhere, and the stand-in for Keepa."""
