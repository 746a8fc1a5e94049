"""`python -m launcher` is `launch`."""

import sys

from launcher.cli.main import main

sys.exit(main())
