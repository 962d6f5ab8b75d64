"""The page's files fit together, and ask nothing of a browser that their policy forbids."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from serve import pages, readiness
from serve.metrics import ENDS
from serve.problems import TYPES, Problem

TEXTS = {path.name: path.read_text() for path in pages.FOLDER.iterdir()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
STYLE, INDEX = TEXTS["style.css"], TEXTS["index.html"]
IMPORT = re.compile(r'^import (?P<what>.+?) from "(?P<where>[^"]+)";', re.MULTILINE | re.DOTALL)
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)


class Document(HTMLParser):
    """Elements of index.html: tag, attributes, the tags around, and the text inside."""

    VOID = {"meta", "link", "input", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[dict] = []
        self._open: list[dict] = []
        self.feed(text)
        assert not self._open, f"<{self._open[-1]['tag']}> is never closed"

    def handle_starttag(self, tag, attrs):
        found = {"tag": tag, "attrs": dict(attrs), "around": list(self._open), "text": ""}
        self.elements.append(found)
        if tag not in self.VOID:
            self._open.append(found)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open and self._open[-1]["tag"] == tag, f"</{tag}> closes nothing"
        self._open.pop()

    def handle_data(self, data):
        for one in self._open:
            one["text"] += data

    def every(self, *tags: str) -> list[dict]:
        return [one for one in self.elements if one["tag"] in tags]


DOCUMENT = Document(INDEX)
IDS = [one["attrs"]["id"] for one in DOCUMENT.elements if "id" in one["attrs"]]


@pytest.fixture
def client():
    async def refused(request, problem):
        return JSONResponse(problem.body, problem.status)

    return TestClient(Starlette(routes=pages.routes(), exception_handlers={Problem: refused}))


def names(what: str) -> list[str]:
    """What an import takes by name; of `* as words` nothing."""
    return re.findall(r"\w+", what) if what.startswith("{") else []


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_resolve(name):
    for found in IMPORT.finditer(SCRIPTS[name]):
        where = found["where"].removeprefix("./")
        assert found["where"].startswith("./") and where in SCRIPTS
        missing = set(names(found["what"])) - set(EXPORT.findall(SCRIPTS[where]))
        assert not missing, f"{where} exports no {missing}"
        if whole := re.match(r"\* as (\w+)", found["what"]):
            used = set(re.findall(rf"(?<![\w./]){whole[1]}\.(\w+)", SCRIPTS[name]))
            assert used <= set(EXPORT.findall(SCRIPTS[where]))


def test_no_module_is_left_over():
    reached, todo = set(), ["app.js", "blocks.js"]
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += [w for w in (f["where"][2:] for f in IMPORT.finditer(SCRIPTS[name])) if w not in reached]
    assert reached == set(SCRIPTS)
    assert '"/page/blocks.js"' in SCRIPTS["microphone.js"]


def test_own_files_that_are_named_exist():
    named = {n for text in TEXTS.values() for n in re.findall(r"/page/([\w.-]+)", text)}
    assert {"app.js", "style.css", "icon.svg"} <= named <= set(TEXTS)


@pytest.mark.parametrize("name", TEXTS)
def test_no_other_host_is_asked(name):
    hosts = set(re.findall(r"(?:https?|wss?):?//([\w.-]+)", TEXTS[name]))
    assert hosts <= {"www.w3.org"}  # a name of namespaces, which nothing loads


def test_every_module_has_one_concern():
    assert all(text.count("\n") <= 300 for text in TEXTS.values())
    assert all(text.startswith("//") for text in SCRIPTS.values())


def test_nothing_is_inline():
    for one in DOCUMENT.elements:
        given = one["attrs"]
        assert not any(name.startswith("on") or name == "style" for name in given), one
        assert not any((value or "").strip().lower().startswith("javascript:") for value in given.values())
    assert all(one["attrs"].get("src") and not one["text"].strip() for one in DOCUMENT.every("script"))
    assert not DOCUMENT.every("style", "iframe", "object", "embed", "base")


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_string_becomes_markup_or_code(name):
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|cssText|DOMParser|srcdoc"
    assert not re.findall(forbidden, SCRIPTS[name])


def test_ids_are_there_and_unique():
    assert len(IDS) == len(set(IDS))
    wanted = {found for text in SCRIPTS.values() for found in re.findall(r'\bfind\("([\w-]+)"\)', text)}
    assert len(wanted) > 30 and wanted <= set(IDS)
    for one in DOCUMENT.elements:
        for name in ("for", "aria-describedby", "aria-labelledby"):
            assert set((one["attrs"].get(name) or "").split()) <= set(IDS), one
        if one["tag"] == "use":
            assert one["attrs"]["href"].removeprefix("#") in IDS
    drawn = {found for text in SCRIPTS.values() for found in re.findall(r'\bdrawing\("([\w-]+)"', text)}
    art = set(re.findall(r'"(\w+)"', re.search(r"art = .*", SCRIPTS["cards.js"])[0]))
    assert {"arrow"} <= drawn and drawn | art <= set(IDS)


def test_every_control_has_a_name():
    said_for = {one["attrs"]["for"] for one in DOCUMENT.every("label") if "for" in one["attrs"]}
    controls = DOCUMENT.every("button", "input", "video", "canvas", "a", "section", "fieldset")
    assert len(controls) > 20
    for one in controls:
        given, around = one["attrs"], one["around"]
        if given.get("aria-hidden") == "true":
            continue
        label = any(up["tag"] == "label" and up["text"].strip() for up in around)
        own = one["text"].strip() if one["tag"] in ("button", "a", "fieldset") else ""
        named = given.get("aria-label") or given.get("aria-labelledby") or given.get("id") in said_for
        assert named or label or own, one


def test_states_are_said_aloud():
    (status,) = [one for one in DOCUMENT.elements if one["attrs"].get("id") == "status"]
    assert status["attrs"]["role"] == "status" and status["attrs"]["aria-live"] == "polite"
    assert "lang" in DOCUMENT.every("html")[0]["attrs"]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_enough():
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", STYLE))
    for ground in ("ground", "raised"):
        for text in ("text", "quiet", "accent", "bad"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["control"], colour[ground]) >= 3  # edges of controls: 1.4.11
    assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_motion_and_focus_are_cared_for():
    assert "prefers-reduced-motion: reduce" in STYLE
    assert re.search(r":focus-visible \{ outline: 3px", STYLE)
    assert set(re.findall(r"var\(--([\w-]+)[,)]", STYLE)) - {"shape"} <= set(re.findall(r"--([\w-]+):", STYLE))


def table(name: str) -> set[str]:
    """Keys of a table in words.js."""
    body = re.search(rf"const {name} = \{{\n(.*?)\n\}};", SCRIPTS["words.js"], re.DOTALL)[1]
    return set(re.findall(r"^ +(\w+):", body, re.MULTILINE))


def test_words_are_there_for_what_the_server_says():
    assert table("ENDED") == set(ENDS)
    assert table("REFUSED") - {"unreachable"} <= set(TYPES)
    wanted = {"unauthorized", "full", "draining", "too_many", "not_found", "ended", "not_ready", "audio_full"}
    assert wanted <= table("REFUSED")


def test_the_page_knows_a_server_that_ends():
    (said,) = re.findall(r'const ENDING = "(.+)";', SCRIPTS["words.js"])
    assert f'"{said}"' in Path(readiness.__file__).read_text()


def test_notices_are_those_of_the_server():
    """`words` comes in the server's own."""
    source = "".join(path.read_text() for path in sorted(Path(pages.__file__).parent.glob("*.py")))
    sent = set(re.findall(r'notice\(\s*"(\w+)"', source))
    assert len(sent) > 3
    assert set(re.findall(r'kind === "(\w+)"', SCRIPTS["words.js"])) == sent - {"words"}


def test_no_key_has_a_name_of_its_own():
    assert not re.search(r"""["']none["']""", "".join(SCRIPTS.values()))


def test_the_page_comes_with_its_policy(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.text == INDEX
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_is_served_and_not_twice(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.text == TEXTS[name]
    assert answer.headers["content-type"] == pages.KINDS[Path(name).suffix]
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(f"/page/{name}", headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert again.status_code == 304 and not again.content and "content-security-policy" in again.headers
    assert client.get(f"/page/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert not client.head(f"/page/{name}").content


@pytest.mark.parametrize(
    "name", ["none.js", "..%2Fpages.py", "%2e%2e%2fpages.py", "app.js%00", "x" * 5000, ".", "a%0ab"]
)
def test_nothing_else_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_only_reading_is_allowed(client):
    assert client.post("/").status_code == client.put("/page/app.js").status_code == 405
