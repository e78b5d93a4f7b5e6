"""What the `tokenbroker` command does beside serving: look at a broker and steer it."""
