"""`python -m kv_store`."""

from .server import main

main()
