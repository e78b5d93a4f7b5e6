"""What outlives the process, in Postgres: records, sums, leadership; all SQL of the broker."""
