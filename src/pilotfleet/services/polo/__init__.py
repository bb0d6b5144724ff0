"""Reputation: receipts for tasks, their delivery, and the gate."""
