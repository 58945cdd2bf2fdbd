"""`python -m draft_service`."""

from .server import main

if __name__ == "__main__":
    main()
