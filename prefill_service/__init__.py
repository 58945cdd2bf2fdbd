"""prefill_service service."""
