"""Record a session of `everframe serve` to an mp4.

everframe serve experiment=live &
python docs/examples/record_session.py http://127.0.0.1:8080 maze.mp4 --seconds 10 --act forward
"""

import argparse

from serve.client import Refused, connect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url")
parser.add_argument("path")
parser.add_argument("--seconds", type=float, default=10)
parser.add_argument("--model", help="one of several that the server offers")
parser.add_argument("--prompt")
parser.add_argument("--act", help="a key to hold, such as forward")
parser.add_argument("--token", help="of the server, if it wants one")
given = parser.parse_args()

wanted = {name: value for name in ("model", "prompt") if (value := getattr(given, name)) is not None}
try:
    with connect(given.url, token=given.token, **wanted) as session:
        if given.act:
            session.act(given.act)
        saved = session.save(given.path, given.seconds)
        print(f"{given.path}: {saved:.1f} s of {session.model}, {session.mime}")
        session.stop()
except Refused as refused:
    raise SystemExit(f"error: {refused}") from None
