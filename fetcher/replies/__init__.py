"""What Keepa's replies mean; pure."""
