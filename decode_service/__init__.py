"""decode_service service."""
