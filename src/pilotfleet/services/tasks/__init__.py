"""Tasks on ports 1003 and 1010: durable queues on both sides, sessions, polo."""
