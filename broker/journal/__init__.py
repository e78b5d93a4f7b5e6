"""What outlives the process: leadership among several brokers."""
