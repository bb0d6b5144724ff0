"""The registry service: directory, store and servers."""
