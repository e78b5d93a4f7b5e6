"""Tests of the stand-in for Keepa."""
