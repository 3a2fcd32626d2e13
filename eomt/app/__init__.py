"""`eomt serve`: a page and an HTTP API to try models on photos."""
