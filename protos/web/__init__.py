"""What every HTTP port and page shares: the server, its headers, sign-in, look and charts."""
