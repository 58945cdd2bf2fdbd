"""Load for a running gateway, and what a client sees of it."""
