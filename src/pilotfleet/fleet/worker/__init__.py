"""Workers: take tasks, run them, return results, report health."""
