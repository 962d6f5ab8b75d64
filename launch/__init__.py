"""Entry points: parse the command line, build what was asked for, run it, print where the results are."""
