"""What a query asks for, and its verdict on a deal; pure."""
