"""Port 1003, spoken by peers that know nothing of task sessions."""
