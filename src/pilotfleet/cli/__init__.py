"""The programs: argument parsing, output and exit codes."""
