"""Ways to move block payloads between a worker and the store."""
