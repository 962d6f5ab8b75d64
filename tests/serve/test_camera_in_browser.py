"""The page's camera in a real browser, where there is one: what it sees goes up as small pictures with their times."""

import io
import shutil

import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve import pages
from tests.serve.realtime_packets import HEIGHT, WIDTH
from tests.serve.realtime_server import OFFER, FakeSession, serving

pytestmark = pytest.mark.long
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu"]
FAKE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""A camera of 640 x 480 that everybody may have."""
MODEL = OFFER | {
    "hears": False, "actions": [], "picture": False, "words": [], "presets": [], "trained": False,
    "capacity": 1, "running": 0, "waiting": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def site():
    async def models(request):
        return JSONResponse({"object": "list", "data": [MODEL]})

    async def ready(request):
        return JSONResponse({"status": "ready"})

    with serving([*pages.routes(), Route("/v1/models", models), Route("/readyz", ready)]) as one:
        yield one


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with api.sync_playwright() as play:
        yield lambda *more: play.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *more])


@pytest.fixture
def opened(site, chromium):
    """opened(flags, width) gives (page, its session), live over a WebSocket."""
    browsers = []

    def once(*flags, width=1000):
        session = FakeSession(1)
        site.gateway.next = lambda wanted: session
        browsers.append(chromium(*flags))
        page = browsers[-1].new_page(viewport={"width": width, "height": 800})
        page.goto(f"{site.url}/?transport=ws")
        page.get_by_text("Press Start").wait_for()
        page.get_by_role("button", name="Start", exact=True).click()
        page.locator("#status").get_by_text("Live. Choose what it sees.").wait_for()
        return page, session

    yield once
    for browser in browsers:
        browser.close()


def frames(page, session, count=8):
    """So many pictures that came from now on: (JPEG, when it was taken)."""
    before = len(session.of("frame"))
    while len(session.of("frame")) < before + count:
        session.changed.clear()
        page.wait_for_timeout(20)  # lets the browser's own messages through
        session.changed.wait(10)
    return [tuple(one) for one in session.of("frame")[before:]]


def picture(jpeg):
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def test_the_test_picture_goes_up_as_it_is_seen(opened):
    page, session = opened()
    assert session.of("frame") == []
    page.get_by_role("button", name="Test picture").click()
    found = frames(page, session)
    assert all(picture(jpeg).size == (WIDTH, HEIGHT) for jpeg, _ in found)
    times = [at for _, at in found]
    assert times == sorted(set(times)) and times[-1] - times[0] > 0.5 * len(times) / OFFER["fps"]
    assert len({jpeg for jpeg, _ in found}) > 1, "it moves"
    assert page.get_by_role("button", name="Test picture").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Nothing new").click()
    assert page.locator("#own-frame.seen").count() == 0


def test_a_camera_goes_up_whole_and_no_larger_than_is_of_use(opened):
    page, session = opened(*FAKE)
    page.get_by_role("button", name="Camera", exact=True).click()
    found = frames(page, session)
    assert all(picture(jpeg).size == (round(HEIGHT * 640 / 480), HEIGHT) for jpeg, _ in found)
    at = page.evaluate("document.getElementById('own').width / document.getElementById('own').height")
    assert at == pytest.approx(640 / 480, rel=0.03)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped").wait_for()
    assert page.get_by_role("button", name="Nothing new").get_attribute("aria-pressed") == "true", "it is let go of"


def test_where_there_is_no_camera_the_test_picture_goes_up_and_the_page_says_why(opened):
    page, session = opened()
    page.get_by_role("button", name="Camera", exact=True).click()
    page.locator("#status").get_by_text("The camera could not be had, so it sees the test picture").wait_for()
    assert all(picture(jpeg).size == (WIDTH, HEIGHT) for jpeg, _ in frames(page, session, 2))


@pytest.mark.parametrize(("width", "beside"), [(1000, True), (360, False)])
def test_what_it_sees_and_what_it_makes_are_beside_each_other_or_stacked_on_a_phone(opened, width, beside):
    page, _ = opened(width=width)
    own, made = (page.locator(one).bounding_box() for one in ("#own-frame", "#frame"))
    assert (own["y"] == made["y"]) is beside and (own["x"] < made["x"]) is beside
    assert own["width"] == made["width"] and page.evaluate("document.documentElement.scrollWidth") <= width
    assert "random weights" in page.locator("#honest").inner_text()


def test_the_time_from_a_picture_to_what_is_made_of_it_is_of_ones_own_pictures(opened):
    page, _ = opened()
    work = """async () => {
        const m = await import("/page/watch.js");
        let next;
        const video = { srcObject: null, requestVideoFrameCallback: (call) => { next = call; } };
        const watch = new m.Watch(video, { frame: () => {}, seen: () => {} });
        const now = performance.now(), taken = now / 1000;
        watch.filmed(taken);
        for (const [i, at] of [taken, taken + 1].entries()) {
            watch.chunk({ chunk: i, frames: 12, pts_s: i, camera: { at, after_s: 0.25, latency_s: 0.1 } });
            next(now, { presentedFrames: i + 1, expectedDisplayTime: now + 1000 * (i + 1), mediaTime: i });
        }
        return watch.cameraLatencies;
    }"""
    assert page.evaluate(work) == [pytest.approx(1.25, abs=1e-6)]


def test_the_smallest_picture_that_covers_is_sent_and_none_is_made_larger(opened):
    page, _ = opened()
    work = """async (cases) => {
        const { covering } = await import("/page/camera.js");
        return cases.map((one) => covering(...one));
    }"""
    cases = [[1920, 1080, 832, 480], [480, 640, 64, 64], [32, 24, 64, 64], [640, 480, 64, 64]]
    assert page.evaluate(work, cases) == [[853, 480], [64, 85], [32, 24], [85, 64]]
