"""draft_service service."""
