"""`python -m decode_service`."""

from .server import main

if __name__ == "__main__":
    main()
