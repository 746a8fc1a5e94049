"""`python -m tests.cluster`: see cluster.py."""

from __future__ import annotations

import sys

from tests.cluster.binaries import Unavailable
from tests.cluster.cluster import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Unavailable, RuntimeError) as error:
        sys.exit(str(error))
