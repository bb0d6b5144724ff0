"""Data exchange on port 1001: messages, files, the inbox."""
