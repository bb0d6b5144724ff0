"""The directory: a materialised view, pure memory, every rule."""
