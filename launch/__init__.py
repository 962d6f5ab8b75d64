"""Entry points: parse the command line, build what was asked for, run it, print where the results are."""

import sys

from everframe.names import insist

if "everframe.pipeline" not in sys.modules:  # a program that imports us is told by an exception instead
    insist()
