"""`python -m linnaeus`, which torchrun starts."""

from linnaeus.cli.main import main

if __name__ == "__main__":
    main()
