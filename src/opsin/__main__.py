"""`python -m opsin VERB ...` is the same as `opsin VERB ...`."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # processes started by spawn import this module again and must not run the verb again
    from opsin.cli import main

    sys.exit(main())
