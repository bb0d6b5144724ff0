"""Port 1010, spoken by peers that break its rules."""
