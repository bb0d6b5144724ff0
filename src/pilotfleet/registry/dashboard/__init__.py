"""What a rendezvous shows over HTTP: metrics, the public directory, its pages."""
