"""`python -m launcher.runtime.controller`: the controller of one run. The supervisor starts it."""

import sys

from launcher.runtime.controller.controller import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
