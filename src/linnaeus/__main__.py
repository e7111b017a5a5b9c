"""`python -m linnaeus`, which torchrun starts."""

from linnaeus.cli import main

if __name__ == "__main__":
    main()
