"""The page in a real browser, where there is one: it comes up clean under its policy, and its modules compute."""

import shutil
import threading
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from serve import pages
from serve.boxes import Sample, fragment, init

pytestmark = pytest.mark.long
CHROMIUM = shutil.which("chromium")
OFFERS = [
    {
        "id": "a_face", "fps": 16, "chunk_s": 0.75, "width": 64, "height": 64, "hears": True, "actions": [],
        "prompts": True, "picture": True, "words": ["a", "happy", "sad", "person"],
        "presets": [{"name": n, "prompt": n} for n in ("a happy person", "a sad person")],
        "capacity": 3, "running": 1, "waiting": 0,
    },
    {
        "id": "a_maze", "fps": 16, "chunk_s": 0.75, "width": 64, "height": 64, "hears": False,
        "actions": ["none", "forward", "jump"], "prompts": False, "picture": False, "words": [], "presets": [],
        "capacity": 1, "running": 0, "waiting": 0,
    },
]  # fmt: skip


SECRETS = []
"""Of sessions, as they were said to `served`, one for each request."""


class Queue:
    """A server's, as far as the page asks: one session, which waits, and whose first connection is lost at once."""

    def __init__(self):
        self.state, self.position, self.joined = "queued", 3, 0
        self.token, self.reasons, self.changes = None, [], {}

    async def open(self, request):
        told = {"id": "one", "secret": "s", "state": "queued", "position": self.position, "wait_s": 20}
        return JSONResponse(told, 202)

    async def session(self, request):
        if request.method == "DELETE":
            self.state = "ended"
        reason = None if self.state == "queued" else "lease"
        place = {"position": self.position, "wait_s": 5} if self.state == "queued" else {}
        return JSONResponse({"id": "one", "state": self.state, "model": "a_face", "reason": reason} | place)

    async def realtime(self, websocket):
        await websocket.accept("everframe.v1")
        assert (await websocket.receive_json())["session"] == "one"
        self.joined += 1
        if self.joined == 1:
            self.position = 2
            await websocket.close(1011)
            return
        with suppress(WebSocketDisconnect):
            await websocket.receive_json()


@contextmanager
def served(queue):
    loading = [[]]

    async def models(request):
        SECRETS.append(request.headers.get("x-session-secret"))
        if queue.token and request.headers.get("authorization") != f"Bearer {queue.token}":
            return JSONResponse({"type": "unauthorized", "detail": "no"}, 401)
        offers = [offer | queue.changes.get(offer["id"], {}) for offer in OFFERS]
        return JSONResponse({"object": "list", "data": loading.pop() if loading else offers})

    async def ready(request):
        return JSONResponse({"status": "", "reasons": queue.reasons}, 503 if queue.reasons else 200)

    async def session(request):
        SECRETS.append(request.headers.get("x-session-secret"))
        return JSONResponse({"id": request.path_params["id"], "state": "running", "model": "a_maze"})

    asked = [
        Route("/v1/sessions", queue.open, methods=["POST"]),
        Route("/v1/sessions/one", queue.session, methods=["GET", "DELETE"]),
        WebSocketRoute("/v1/realtime/video", queue.realtime),
        Route("/v1/sessions/{id}", session),
    ]
    app = Starlette(routes=[*pages.routes(), Route("/v1/models", models), Route("/readyz", ready), *asked])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def page():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    queue = Queue()
    with served(queue) as address, api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        found = browser.new_page(viewport={"width": 360, "height": 740})
        found.complaints, found.queue = [], queue
        found.on("console", lambda message: found.complaints.append(message.text))
        found.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.goto(address)
        found.get_by_text("The models are loading").wait_for()
        found.waited = found.locator("#start").is_disabled()
        found.get_by_text("Press Start").wait_for()
        yield found
        browser.close()


def module(page, name: str, work: str, argument=None):
    """What `work(module, argument)` gives in the page."""
    return page.evaluate(f"async (given) => (({work}))(await import('/page/{name}'), given)", argument)


def test_it_waits_for_models_that_load(page):
    assert page.waited and not page.locator("#start").is_disabled()


def test_it_comes_up_clean_and_fits_a_phone(page):
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_it_shows_is_what_is_offered(page):
    assert page.get_by_role("radio").count() == 2
    assert page.get_by_role("button", name="Hold to talk").is_visible()
    assert page.get_by_role("button", name="Happy").is_visible()
    page.get_by_role("radio").nth(1).check()
    assert not page.get_by_role("button", name="Hold to talk").is_visible()
    assert (
        page.get_by_role("button", name="forward").is_visible() and page.get_by_role("button", name="jump").is_visible()
    )
    assert page.get_by_role("button", name="none").count() == 0
    page.get_by_role("radio").nth(0).check()


def test_no_button_is_for_the_first_action_whatever_it_is_called(page):
    work = """async (m) => {
        const { layout } = await import("/page/layout.js");
        const [walk, look, more] = [1, 2, 3].map(() => document.createElement("div"));
        const controls = layout({ keys: ["stand", "forward", "none"], one: true, axes: [] });
        new m.Keys(() => {}).draw(controls, { walk, look, more });
        return [walk, more].map((one) => [...one.children].map((b) => b.getAttribute("aria-label")));
    }"""
    assert module(page, "keys.js", work) == [["forward"], ["none"]]


def test_a_place_in_the_queue_is_kept_though_the_connection_or_the_page_is_lost(page):
    queue, said = page.queue, page.locator("#status")
    page.get_by_role("button", name="Start", exact=True).click()
    said.get_by_text("You are number 3 in the queue").wait_for()
    said.get_by_text("You are number 2 in the queue").wait_for()
    queue.position = 1
    said.get_by_text("You are next").wait_for()
    assert queue.joined == 2, "one that was lost is made again, and one that is there is kept"
    page.reload()
    page.get_by_role("button", name="Go on").click()
    said.get_by_text("You are next").wait_for()
    queue.state = "ended"
    said.get_by_text("It ended while nobody was watching").wait_for()


def test_key_frames_are_found_in_fragments(page):
    sps, pps = bytes.fromhex("6742c01edd0422"), bytes.fromhex("68ce3c80")
    keys = [0, 5, 6, 17]
    pieces = [init(64, 64, sps, pps, True)]
    for first in range(0, 20, 4):
        video = [Sample(b"picture", 5625 * i, 5625, i in keys) for i in range(first, first + 4)]
        sound = [Sample(b"sound", 960 * (2 * first + i), 960, True) for i in range(3)]
        pieces.append(fragment(first // 4 + 1, video, sound))
    work = "(m, all) => { const k = new m.KeyTimes(); return all.flatMap((one) => k.read(new Uint8Array(one))); }"
    assert module(page, "fragments.js", work, [list(piece) for piece in pieces]) == [i / 16 for i in keys]


def test_names_of_presets_are_short(page):
    work = "(m, names) => m.short(names)"
    assert module(page, "prompts.js", work, ["a maze by day", "a maze by night"]) == ["Day", "Night"]
    assert module(page, "prompts.js", work, ["an angry person", "a sad person"]) == ["Angry", "Sad"]
    assert module(page, "prompts.js", work, ["a maze"]) == ["A maze"]


def test_a_press_is_matched_with_the_first_frame_that_shows_it(page):
    """Frames carry RTP times with a random origin, near its wrap; chunks carry times since the session's start."""
    work = """(m) => {
        let next, shown = [];
        const video = { srcObject: {}, requestVideoFrameCallback: (call) => { next = call; } };
        const watch = new m.Watch(video, { frame: () => {}, seen: (chunk) => shown.push(chunk.chunk) });
        const origin = 2 ** 32 - 50_000, pressed = performance.now();
        watch.asked("key");
        for (let i = 0; i < 36; i += 1) {
            const events = i === 24 ? ["key"] : [];
            if (i % 12 === 0) watch.chunk({ chunk: i / 12, frames: 12, pts_s: i / 16, events });
            const at = pressed + 1000 + i * 62.5;
            next(at, { presentedFrames: i + 1, expectedDisplayTime: at, receiveTime: performance.now(),
                       rtpTimestamp: (origin + i * 5625) % 2 ** 32, mediaTime: 7 + i / 16 });
        }
        const { frames, controlLatencies, framesSeen, freezes } = watch;
        return { times: frames.map((f) => f.mediaTime), latency: controlLatencies[0], framesSeen, freezes, shown };
    }"""
    found = module(page, "watch.js", work)
    assert found["shown"] == [0, 1, 2] and found["framesSeen"] == 36 and found["freezes"] == 0
    assert found["times"] == pytest.approx([i / 16 for i in range(36)], abs=1e-4)
    assert found["latency"] == pytest.approx(1 + 24 / 16, abs=0.05)


def begins(page, text: str, name: str = "Start", able: bool = True):
    """The page comes to say `text`, and its button is called so."""
    page.locator("#status").get_by_text(text).wait_for()
    button = page.get_by_role("button", name=name, exact=True)
    button.wait_for()
    assert button.is_enabled() is able


def test_nothing_is_begun_where_no_server_answers(page):
    page.route("**/v1/models", lambda route: route.abort())
    begins(page, "The server is gone", able=False)
    assert page.locator("#places").inner_text() == ""
    page.unroute("**/v1/models")
    begins(page, "Press Start")
    page.queue.reasons = ["the server is ending"]
    begins(page, "The server is closing down", able=False)
    page.queue.reasons = []
    begins(page, "Press Start")


def test_a_model_that_is_gone_leaves_the_others(page):
    page.queue.changes = {"a_face": {"gone": True, "capacity": 0}}
    begins(page, "This model is gone; the server has to be started anew", able=False)
    page.get_by_role("radio").nth(1).check()
    begins(page, "Press Start")
    page.get_by_role("radio").nth(0).check()
    begins(page, "This model is gone", able=False)
    page.queue.changes = {"a_face": {"running": 3}}
    begins(page, "All places are taken", "Wait in line")
    page.queue.changes = {}
    begins(page, "Press Start")


def test_a_token_that_is_not_the_servers_is_told_beside_its_field(page):
    page.queue.token = "right"
    field, wrong = page.locator("#token"), page.locator("#token-bad")
    field.wait_for()
    assert wrong.inner_text() == "" and not page.locator("#start").is_visible()
    for said in ("wrong", "é😀"):
        field.fill(said)
        page.get_by_role("button", name="Go on").click()
        wrong.get_by_text("This token is not the server's").wait_for()
        field.wait_for()
    field.fill("right")
    page.get_by_role("button", name="Go on").click()
    begins(page, "Press Start")
    assert not field.is_visible() and page.get_by_role("radio").count() == 2
    page.queue.token = None


def test_a_session_of_before_can_be_ended(page):
    page.evaluate("import('/page/kept.js').then((m) => m.keep({ id: 'two', secret: 's', model: { id: 'a_maze' } }))")
    page.reload()
    begins(page, "A session of yours is still there", "Go on")
    page.get_by_role("button", name="End it").click()
    begins(page, "Stopped")
    assert not page.get_by_role("button", name="End it").is_visible()


def test_the_line_of_words_counts_down_and_tells_of_a_picture_that_stands_still(page):
    work = """(m) => {
        const line = new m.Line(), said = () => document.getElementById("status").textContent;
        const told = [];
        line.say("Live.");
        line.count(12, (left) => `It ends in ${left} seconds.`);
        told.push(said());
        line.still(5);
        told.push(said());
        line.still(null);
        told.push(said());
        line.say("Live.");
        told.push(said());
        return told;
    }"""
    counted, still, moves, last = module(page, "line.js", work)
    assert counted == moves == "It ends in 12 seconds." and last == "Live."
    assert "stands still, for 5 seconds" in still


def test_a_stream_that_is_about_to_go_on_is_told_over_its_last_picture(page):
    work = """(m) => {
        const seen = () => getComputedStyle(document.querySelector(".moment")).display !== "none", told = [seen()];
        for (const kind of ["frozen", "draining", "resumed", "draining"]) {
            m.noticed({ kind });
            told.push(seen());
        }
        m.stand(true);
        told.push(m.stands());
        m.stand(false);
        return told;
    }"""
    assert module(page, "moment.js", work) == [False, True, True, False, False, True]


def test_unknown_words_are_told_once_with_the_title_of_the_card(page):
    work = "(m, given) => m.notice(given, { id: 'a_face' })"
    said = module(page, "words.js", work, {"kind": "words", "message": "a_face does not know blue"})
    assert said == "A face does not know blue."


def test_ones_own_turn_is_counted(page):
    work = "(m) => [[0, true], [1, true], [2, true], [2, false]].map(([w, o]) => "
    work += "m.places({ running: 1, capacity: 1, waiting: w }, o))"
    before = "1 of 1 place taken, "
    tails = ["you wait", "you wait", "2 wait, you among them", "2 waiting"]
    assert module(page, "words.js", work) == [before + tail for tail in tails]
