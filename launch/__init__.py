"""Entry points: parse the command line, build what was asked for, run it, print where the results are."""

import everframe  # noqa: F401  ends with one line where another's package has the name of one of ours
