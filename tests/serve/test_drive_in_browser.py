"""Worlds driven in a real browser, where there is one: keys together, a mouse that looks, a start over, a map."""

import io
import shutil
from itertools import pairwise

import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve import pages
from tests.patience import PATIENT_S
from tests.serve.realtime_server import OFFER, FakeSession, serving

pytestmark = pytest.mark.long
CHROMIUM = shutil.which("chromium")
MOVES = ["forward", "back", "left", "right"]
LOOKS = ["look_up", "look_left", "look_down", "look_right"]
RUNS = ["stand", "jump", "slide", "turn_left", "turn_right", "side_left", "side_right"]
CONTROLS = {
    "turning": {"keys": MOVES, "one": False, "axes": ["pitch", "yaw"]},
    "looking": {"keys": [*MOVES, *LOOKS], "one": False, "axes": []},
    "running": {"keys": RUNS, "one": True, "axes": []},
}
MODELS = {
    name: OFFER | {
        "id": name, "hears": False, "sees": False, "prompts": False, "picture": True, "actions": controls["keys"],
        "words": [], "presets": [], "capacity": 1, "running": 0, "waiting": 0, "controls": controls,
    }
    for name, controls in CONTROLS.items()
}  # fmt: skip


class Seeded(FakeSession):
    def figures(self):
        return super().figures() | {"seed": 7}


@pytest.fixture(scope="module")
def site():
    async def models(request):
        return JSONResponse({"object": "list", "data": list(MODELS.values())})

    async def ready(request):
        return JSONResponse({"status": "ready"})

    async def upload(request):
        return JSONResponse({"id": "a-picture"})

    own = [Route("/v1/models", models), Route("/readyz", ready), Route("/v1/uploads", upload, methods=["POST"])]
    with serving([*pages.routes(), *own]) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def page(site, browser):
    """At the site, where a session is the next of `sessions`; what the browser complains of fails the test."""
    one = browser.new_page(viewport={"width": 1000, "height": 800})
    one.sessions, complaints = [Seeded(1), Seeded(2)], []
    one.on("console", lambda message: complaints.append(message.text))
    one.on("pageerror", lambda error: complaints.append(str(error)))
    site.gateway.wanted.clear()
    left = iter(one.sessions)
    site.gateway.next = lambda wanted: next(left)
    one.goto(f"{site.url}/?transport=ws")
    one.get_by_text("Press Start").wait_for()
    yield one
    one.close()
    assert complaints == []


def live(page, model):
    """A session of a model; what is told of it."""
    for session in page.sessions:
        session.served.offer = MODELS[model]
    page.get_by_role("radio").nth(list(MODELS).index(model)).check()
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator("#status").get_by_text("Live.").wait_for()
    return page.sessions[0]


def said(session):
    """Actions as they came, without what they have in common."""
    return [{k: v for k, v in event.items() if k != "type"} for _, event in session.of("event")]


def until(page, session, true):
    """What was said once it is so."""
    for _ in range(200):
        if true(said(session)):
            break
        page.wait_for_timeout(20)  # lets the browser's own messages through
    return said(session)


def pull(page, across, down, hold, count=12):
    """Move a mouse evenly over the picture, by so many pixels a time; `hold()` is done before."""
    box = page.locator("#frame").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    hold()
    for i in range(1, count + 1):
        page.mouse.move(x + i * across, y + i * down)
        page.wait_for_timeout(20)


def test_each_key_lies_where_hands_look_for_it(page):
    work = """async (all) => {
        const { layout } = await import("/page/layout.js");
        return all.map((one) => layout(one).map((c) => [c.name, c.pad && `${c.pad} ${c.side}`, c.codes.join(" ")]));
    }"""
    maze = {"keys": ["stand", *MOVES, "jump", "crouch"], "one": True, "axes": []}
    turning, looking, running, maze = page.evaluate(work, [*CONTROLS.values(), maze])
    walk = [["forward", "walk up", "KeyW"], ["left", "walk left", "KeyA"], ["back", "walk down", "KeyS"]]
    walk.append(["right", "walk right", "KeyD"])
    arrows = [("up", "ArrowUp"), ("left", "ArrowLeft KeyQ"), ("down", "ArrowDown"), ("right", "ArrowRight KeyE")]
    assert turning == walk + [[f"look {side}", f"look {side}", codes] for side, codes in arrows]
    assert looking == walk + [[f"look_{side}", f"look {side}", codes] for side, codes in arrows]
    assert running == [
        ["jump", "walk up", "ArrowUp KeyW"],
        ["side_left", "walk left", "KeyA"],
        ["slide", "walk down", "ArrowDown KeyS"],
        ["side_right", "walk right", "KeyD"],
        ["turn_left", "look left", "ArrowLeft KeyQ"],
        ["turn_right", "look right", "ArrowRight KeyE"],
    ]
    assert maze[:4] == [[n, at, f"Arrow{at.split()[1].title()} {code}"] for n, at, code in walk]
    assert maze[4:] == [["jump", None, "Digit1 Space"], ["crouch", None, "Digit2"]]


def test_keys_are_held_together_and_axes_are_turned_by_keys(page):
    session = live(page, "turning")
    for key in ("w", "a", "ArrowUp", "ArrowRight"):
        page.keyboard.down(key)
    held = [one.get_attribute("aria-label") for one in page.locator("#drive .held").all()]
    assert held == ["forward", "left", "look up", "look right"]
    page.keyboard.up("w")
    page.keyboard.up("ArrowRight")
    page.keyboard.press("s")
    keys = [["forward"], ["forward", "left"], ["forward", "left"], ["forward", "left"], ["left"], ["left"]]
    turns = [[0, 0], [0, 0], [0.1, 0], [0.1, 0.1], [0.1, 0.1], [0.1, 0]]
    wanted = [{"keys": k, "mouse": m} for k, m in zip(keys, turns, strict=True)]
    wanted += [{"keys": k, "mouse": [0.1, 0]} for k in (["left", "back"], ["left"])]
    assert until(page, session, lambda found: len(found) >= len(wanted)) == wanted
    page.get_by_role("group", name="Look").get_by_role("button", name="look down").focus()
    page.keyboard.down("Enter")
    assert until(page, session, lambda found: found[-1]["mouse"] == [0, 0])[-1] == {"keys": ["left"], "mouse": [0, 0]}


def test_the_last_key_counts_where_one_holds_at_a_time(page):
    session = live(page, "running")
    assert not page.get_by_role("button", name="Look with the mouse").is_visible()
    page.keyboard.down("w")
    page.keyboard.down("q")
    page.keyboard.up("q")
    page.keyboard.up("w")
    wanted = [{"keys": one} for one in (["jump"], ["turn_left"], ["jump"], [])]
    assert until(page, session, lambda found: len(found) >= 4) == wanted


def test_a_mouse_that_the_picture_holds_turns_axes_and_rests(page):
    session = live(page, "turning")

    def hold():
        page.locator("#frame").click()
        page.locator("#status").get_by_text("Esc lets go of it").wait_for()
        assert page.evaluate("document.pointerLockElement.id") == "frame"

    pull(page, 10, -5, hold)
    found = until(page, session, lambda found: found and found[-1]["mouse"] == [0, 0])
    turns = [one["mouse"] for one in found]
    assert all(0 <= pitch <= yaw <= 0.2 for pitch, yaw in turns), "up, and more to the right"
    assert len({yaw for _, yaw in turns}) > 2
    ids = [id for id, _ in session.of("event")][: len(turns)]
    for (id, turn), (after, then) in pairwise(zip(ids, turns, strict=True)):
        assert (id != after) is (any(turn) != any(then)), "a turn is one event, and so is its end"
    page.evaluate("document.exitPointerLock()")
    page.locator("#status").get_by_text("click the picture").wait_for()
    assert page.get_by_role("button", name="Look with the mouse").get_attribute("aria-pressed") == "false"


def test_a_gamepad_walks_with_its_left_stick_and_looks_with_its_right(page):
    session = live(page, "turning")
    page.evaluate("""() => {
        window.stick = { connected: true, axes: [0.1, -1, 0.56, 0], buttons: [] };
        navigator.getGamepads = () => [null, window.stick];
        dispatchEvent(new Event("gamepadconnected"));
    }""")
    turned = {"keys": ["forward"], "mouse": [0, 0.05]}
    assert until(page, session, lambda found: found and found[-1] == turned)[-1] == turned
    page.evaluate("window.stick.axes = [0, 0, 0, 0]")
    rests = {"keys": [], "mouse": [0, 0]}
    assert until(page, session, lambda found: found[-1] == rests)[-1] == rests


def test_a_drag_holds_keys_to_look_with_where_there_are_no_axes(page):
    session = live(page, "looking")
    pull(page, -10, 1, page.mouse.down)
    page.mouse.up()
    found = until(page, session, lambda found: found and found[-1] == {"keys": []})
    assert found[:2] == [{"keys": ["look_left"]}, {"keys": []}], "and nothing else"
    assert page.evaluate("document.pointerLockElement") is None, "a drag is no click"


def test_it_starts_over_in_one_press_with_its_seed_and_another_picture(page, site):
    session = live(page, "turning")
    with page.expect_response("**/v1/uploads"):
        face = io.BytesIO()
        Image.new("RGB", (8, 8)).save(face, "PNG")
        page.locator("#image").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": face.getvalue()})
    page.locator("#status").get_by_text("Start anew to begin with yours").wait_for()
    page.wait_for_timeout(1100)  # figures come once a second, and the seed with them
    page.locator("#frame").click()
    page.locator("#status").get_by_text("R starts over").wait_for()
    page.keyboard.press("r")
    assert page.sessions[1].came.wait(PATIENT_S) and session.reason == "stopped"
    page.locator("#status").get_by_text("Live.").wait_for()
    first, second = site.gateway.wanted
    assert first == {"model": "turning", "queue": True}
    assert second == first | {"seed": 7, "image": "a-picture"}
    assert page.evaluate("document.pointerLockElement.id") == "frame", "who walks on keeps the mouse"
    page.evaluate("document.exitPointerLock()")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Start over").wait_for(state="hidden")


def test_a_map_is_drawn_of_poses_that_are_known(page):
    session = live(page, "turning")
    assert not page.locator("#trail").is_visible()
    work = """async (poses) => {
        const { Watch } = await import("/page/watch.js");
        const { Trail, extent } = await import("/page/trail.js");
        const canvas = document.getElementById("trail");
        const trail = new Trail(canvas, (on) => { canvas.hidden = !on; });
        let next;
        const video = { srcObject: null, requestVideoFrameCallback: (call) => { next = call; } };
        const watch = new Watch(video, { frame: () => {}, seen: ({ pose }) => trail.add(pose) });
        const seen = () => [canvas.hidden, canvas.getAttribute("aria-label")], told = [];
        for (const [i, at] of poses.entries()) {
            watch.chunk({ chunk: i, frames: 8, pts_s: i, at });
            next(performance.now(), { presentedFrames: i + 1, expectedDisplayTime: performance.now(), mediaTime: i });
            told.push(seen());
        }
        return [told, extent([[0, 0], [0, 1], [3, 9]]), extent([[5, 5]]), extent([[0, 0], [1, 0]])];
    }"""
    told, *extents = page.evaluate(work, [None, [1, 0, 2, 0, 0], [3.5, 0, 1, 90, 0]])
    assert [hidden for hidden, _ in told] == [True, False, False]
    assert told[2][1] == "Map: you are 1.0 behind and 2.5 to the right of where you began"
    assert extents[0] == {"x": 1.5, "z": 4.5, "span": pytest.approx(8 * 73**0.5)}
    assert extents[1:] == [{"x": 5, "z": 5, "span": 1}, {"x": 0.5, "z": 0, "span": 8}]
    assert session.state == "running"


def test_speeds_become_steps_within_bounds_and_sides(page):
    work = """async () => {
        const { bounded, follow, sides, steps } = await import("/page/look.js");
        const { leaning } = await import("/page/gamepad.js");
        let speed = 0;
        for (let i = 0; i < 40; i += 1) speed = follow(speed, 20, 0.066);
        const rests = [speed];
        while (rests.at(-1)) rests.push(follow(rests.at(-1), 0, 0.066));
        return [speed, rests.length, steps(300, 25), steps(-300, 25), bounded(9), bounded(-9), bounded(0.12345),
            sides(300, 10), sides(-300, -200), sides(10, 90), sides(30, -30), [0.1, 1, -1].map((v) => leaning(v, 1))];
    }"""
    speed, rests, *found = page.evaluate(work)
    assert speed == pytest.approx(20 / 0.066) and rests < 8, "it rests half a second after what moved it"
    assert found == [1, 0, 0.2, -0.2, 0.123, ["right"], ["left", "up"], ["down"], [], [0, 1, 0]]
