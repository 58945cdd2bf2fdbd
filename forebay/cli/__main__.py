"""`python -m forebay.cli`."""

from forebay.cli import main

if __name__ == "__main__":
    main()
