"""`everframe COMMAND ...`, once it is known that `launch` is Everframe's own."""

from __future__ import annotations

import sys

from launch.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
