"""One module per group of messages: reads a request, asks for the rights it
needs, and lets the directory decide."""
