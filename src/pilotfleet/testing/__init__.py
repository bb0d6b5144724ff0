"""A seeded fake network and a fake clock for tests of the cores."""
