"""`python -m linnaeus.serving.inspection BUNDLE`: open a bundle and let it answer; the exit code says if it did."""

from __future__ import annotations

import sys

from linnaeus.errors import LinnaeusError
from linnaeus.serving.shelf import open_model


def main() -> None:
    """Open the bundle that is named on the command line: exit code 0, or 2 and what is wrong on standard error."""
    try:
        open_model("inspected", sys.argv[1])
    except LinnaeusError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
