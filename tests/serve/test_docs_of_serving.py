"""docs/serving.md says what is so: its tables are those of the code, and its commands run against a real server."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.routing import Route, WebSocketRoute

from conf.schema.serve import ServeConfig
from conf.settings import settings
from launch.command import takes
from launch.of_sessions import NOT_OURS
from serve.app import application
from serve.incoming import MESSAGES
from serve.metrics import Metrics
from serve.problems import RETRYABLE, TYPES
from tests.patience import PATIENT_S

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/serving.md"
TOKEN = "0123456789abcdef0123456789abcdef"
BLOCK = re.compile(r"^```sh \(([^)\n]+)\)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def between(name):
    """What stands between two marks of the page."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE.read_text(), re.DOTALL)
    return found


def section(title):
    """A part of the page, without its subdivisions' names being looked at."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found


def blocks(why):
    return [body for said, body in BLOCK.findall(PAGE.read_text()) if said == why]


def cells(text):
    return text.replace("|", "\\|")


def table_of_settings():
    rows = [f"| `{s.name}` | {cells(takes(s))} | {cells(s.text)} |" for s in settings(ServeConfig, "serve.")]
    return "\n".join(["| setting | takes | what it is |", "|---|---|---|", *rows]) + "\n"


def table_of_problems():
    rows = [f"| `{name}` | {status} | {'yes' if name in RETRYABLE else ''} |" for name, status in TYPES.items()]
    return "\n".join(["| type | status | worth trying again |", "|---|---|---|", *rows]) + "\n"


GENERATED = {
    "metrics": lambda: Metrics(time.monotonic).table(),
    "problems": table_of_problems,
    "settings": table_of_settings,
}
"""Parts of the page that are written by `python -m tests.serve.test_docs_of_serving`."""


@pytest.mark.parametrize("name", GENERATED)
def test_tables_are_those_of_the_code(name):
    assert between(name) == GENERATED[name](), "run python -m tests.serve.test_docs_of_serving"


def routes():
    found = application(SimpleNamespace(serve=ServeConfig())).routes
    sockets = {route.path for route in found if isinstance(route, WebSocketRoute)}
    for route in found:
        if isinstance(route, WebSocketRoute):
            yield "WS", route.path
        elif isinstance(route, Route) and route.path not in sockets:  # there HTTP is only told that it is none
            yield from ((method, route.path) for method in route.methods - {"HEAD"})


def test_every_endpoint_is_told_of():
    text = section("HTTP") + section("WebSocket")
    for method, path in routes():
        if method == "WS" or path in ("/", "/health") or "{file}" in path:
            assert path.replace("{file}", "app.js") in text, path
        else:
            simple = path.replace("{id}", "$ID")
            assert f"{method} {path}" in text or f"$SERVER{simple}" in text, f"{method} {path}"


def test_every_endpoint_has_a_line_of_curl():
    lines = "\n".join(blocks("needs a server"))
    for method, path in routes():
        if method != "WS" and path != "/health":
            address = re.escape("$SERVER" + path.replace("{id}", "$ID").replace("{file}", "app.js"))
            how = {"GET": "(?!.*(-X|--json|--data))", "POST": "(?=.*(--json|--data))", "DELETE": "(?=-sS -X DELETE)"}
            assert re.search(rf"^curl {how[method]}[^#\n]*{address}( |$)", lines, re.MULTILINE), f"{method} {path}"


def test_every_message_of_a_client_is_told_of_and_no_other():
    (said, *_) = section("WebSocket").split("| from the server |")
    assert set(re.findall(r"^\| `(session\.\w+)", said, re.MULTILINE)) == set(MESSAGES)


def test_every_message_of_the_server_is_told_of_and_no_other():
    (_, said) = section("WebSocket").split("| from the server |")
    told = set(re.findall(r"^\| `([\w.]+)", said, re.MULTILINE))
    source = "".join(path.read_text() for path in sorted((ROOT / "serve").glob("*.py")))
    sent = set(re.findall(r'"type": "((?:session|video)\.\w+|error)"', source))
    assert told == sent - set(MESSAGES)


def test_every_notice_is_told_of_and_no_other():
    (row,) = re.findall(r"^\| `session.notice .*?\|(.*)\|$", section("WebSocket"), re.MULTILINE)
    source = "".join(path.read_text() for path in sorted((ROOT / "serve").glob("*.py")))
    sent = set(re.findall(r'notice\(\s*"(\w+)"', source))
    assert set(re.findall(r"`(\w+)`", row)) - {"seconds_left", "position_s", "frozen_s"} == sent


def test_every_figure_is_told_of():
    from serve.figures import Figures

    (text,) = re.findall(r"^.*?Figures are (.*?)The last 256", section("HTTP"), re.MULTILINE | re.DOTALL)
    known = set(re.findall(r"`(\w+)`", text))
    assert {"seed", "position", "wait_s", "latents_sha256", *Figures(time.monotonic).told()} <= known


def test_settings_that_no_session_can_have_are_told_of_and_no_others():
    (said,) = re.findall(r"those\nthat no session can have: (.*?)\.\n\n", section("Settings"), re.DOTALL)
    assert set(re.findall(r"`([\w.]+)`", said)) == set(NOT_OURS)


def test_every_address_inside_the_page_leads_somewhere():
    text = PAGE.read_text()
    heads = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= heads
    for name in re.findall(r"\]\(([\w/.-]+\.md)\)", text):
        assert (PAGE.parent / name).is_file(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("served")
    shutil.copy(ROOT / "assets/portrait.png", found / "face.png")
    (found / "docs").symlink_to(ROOT / "docs")
    (found / "offer.json").write_text(json.dumps(asyncio.run(offer())))
    return found


async def offer():
    """What a browser would send."""
    from aiortc import RTCConfiguration, RTCPeerConnection

    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video", "recvonly")
    peer.addTransceiver("audio", "recvonly")
    peer.createDataChannel("control")
    await peer.setLocalDescription(await peer.createOffer())
    try:
        return {"sdp": peer.localDescription.sdp, "type": "offer"}
    finally:
        await peer.close()


@pytest.fixture(scope="module")
def environment(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKEN": TOKEN,
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(folder, environment):
    """Of a server, started as the page says, but for its port."""
    (started,) = re.findall(r"`everframe serve (model=nano [^`]+)`", section("HTTP"))
    arguments = [*started.replace("$TOKEN", TOKEN).split(), "serve.port=0", "output_dir=out"]
    command = [sys.executable, "-m", "launch.serve", *arguments]
    log = (folder / "log").open("w")
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
    ) as server:
        found = next((line for line in server.stdout if line.startswith("open ")), "")
        assert found, (folder / "log").read_text()
        yield found.split()[1].partition("/#")[0]
        server.send_signal(signal.SIGINT)
        server.stdout.read()
        assert server.wait(PATIENT_S) == 0, (folder / "log").read_text()


def shell(body, folder, environment, **more):
    """Run lines of the page; returns what they print. curl fails where the server refuses."""
    strict = 'curl() { command curl --fail-with-body "$@"; }\n'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", strict + body],
        cwd=folder, env=environment | more, capture_output=True, text=True, timeout=PATIENT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def told(address, session, folder, environment):
    """A session's figures."""
    line = 'curl -sS -H "Authorization: Bearer $TOKEN" -H "X-Session-Secret: $SECRET" $SERVER/v1/sessions/$ID'
    return json.loads(shell(line, folder, environment, SERVER=address, ID=session["id"], SECRET=session["secret"]))


def replayed(session, folder, environment):
    (body,) = blocks("needs a recorded session")
    said = shell(body, folder, environment, ID=session["id"])
    return re.search(r"^latents_sha256: (\w+)$", said, re.MULTILINE)[1]


@pytest.mark.long
def test_lines_of_curl_run_and_their_session_is_made_again_of_its_inputs(folder, environment, address):
    body = "\n".join(blocks("needs a server")).replace("http://127.0.0.1:8080", address)
    shell(body, folder, environment)
    session = json.loads((folder / "session.json").read_text())
    assert json.loads((folder / "answer.json").read_text())["type"] == "answer"
    end = time.monotonic() + PATIENT_S
    while (figures := told(address, session, folder, environment))["state"] != "ended":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert figures["reason"] == "stopped"
    assert replayed(session, folder, environment) == figures["latents_sha256"]


@pytest.mark.long
def test_the_program_of_the_page_runs(folder, environment, address):
    lines = re.findall(r"<!-- python -->\n(.*?)<!-- /python -->", PAGE.read_text(), re.DOTALL)
    (folder / "program.py").write_text("\n".join(line.removeprefix("    ") for line in lines[0].splitlines()))
    said = shell("python program.py", folder, environment, SERVER=address).splitlines()
    assert any("after" in line for line in said)
    name, digest = said[-1].split()
    (body,) = blocks("needs a recorded session")
    again = shell(body.replace("source.image=face.png ", ""), folder, environment, ID=name)
    assert f"latents_sha256: {digest}" in again


def write():
    """Write the tables anew."""
    text = PAGE.read_text()
    for name, table in GENERATED.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: m[1] + t() + m[2], text, flags=re.DOTALL
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
