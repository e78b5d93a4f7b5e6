"""What the broker shows of itself: metrics, health over HTTP, notices."""
