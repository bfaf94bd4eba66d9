"""The built static site: links, addresses, alternative texts; in Chromium also what a person meets.

`make site-check` builds the site and names its folder in CF_SITE; otherwise these tests skip. The
tests marked `browser` need Chromium; the accessibility test needs axe-core, named in CF_AXE.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

if not os.environ.get("CF_SITE"):
    pytest.skip("CF_SITE is not set: run `make site-check`", allow_module_level=True)

SITE = Path(os.environ["CF_SITE"]).resolve()
PAGES = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts)
WIDTHS = (390, 1280)
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
SERIOUS = ("serious", "critical")
# a page of each kind, and all notebooks
LOOKED_AT = [
    "index.html",
    "docs/results.html",
    "docs/glossary.html",
    "docs/decisions.html",
    "docs/teaching.html",
    "data/README.html",
    "search.html",
    "genindex.html",
    "api/cf_utils/index.html",
    "api/cf_utils/core/explainer/index.html",
    *(p.relative_to(SITE).as_posix() for p in sorted(SITE.glob("notebooks/[0-9]*.html"))),
    *(p.relative_to(SITE).as_posix() for p in sorted(SITE.glob("results/demo/0[01]*/README.html"))),
    *(p.relative_to(SITE).as_posix() for p in sorted(SITE.glob("results/README.html"))),
]


class Page(HTMLParser):
    """Ids, links, loaded files and images of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADED and given.get(LOADED[tag]):
            self.loaded.append(given[LOADED[tag]])
        if tag == "img":
            self.images.append(given)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in PAGES}


def is_foreign(address: str) -> bool:
    """Return whether an address leads to another host; data are none."""
    return bool(urlsplit(address).netloc)


# ---------------------------------------------------------------- without a browser


def test_the_site_has_the_pages_that_are_promised(pages):
    names = {path.relative_to(SITE).as_posix() for path in pages}
    assert set(LOOKED_AT) <= names
    assert len([n for n in names if re.match(r"notebooks/\d\d", n)]) >= 9
    assert len([n for n in names if n.startswith("api/cf_utils/")]) >= 100


def test_internal_links_and_files_are_there(pages):
    dead = set()
    for path, page in pages.items():
        for address in [*page.links, *page.loaded]:
            place, fragment = urldefrag(address)
            if urlsplit(address).scheme or is_foreign(address):
                continue
            to = (path.parent / unquote(urlsplit(place).path)).resolve() if place else path
            to = to / "index.html" if to.is_dir() else to
            ids = pages[to].ids if to in pages else {unquote(fragment)}
            if not to.exists() or (fragment and unquote(fragment) not in ids):
                dead.add((path.name, address))
    assert sorted(dead) == []


def test_no_page_and_no_style_loads_a_file_of_another_host(pages):
    foreign = {(p.name, a) for p, page in pages.items() for a in page.loaded if is_foreign(a)}
    for style in SITE.rglob("*.css"):
        text = style.read_text(encoding="utf-8", errors="replace")
        for address in re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s;]+)", text):
            if is_foreign(address):
                foreign.add((style.name, address))
    assert sorted(foreign) == []


def test_every_image_has_an_alternative_text(pages):
    silent = {
        (path.name, image.get("src"))
        for path, page in pages.items()
        for image in page.images
        if image.get("alt") is None or image["alt"].endswith((".png", ".webp"))
    }
    assert sorted(silent) == []


# ---------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the site on a free local port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(SITE))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that records its console and its requests."""
    import shutil

    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium or no chromedriver on the PATH")
    from selenium import webdriver

    from tests.test_lab import FLAGS

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    page = webdriver.Chrome(options, service)
    page.set_page_load_timeout(60)
    page.set_script_timeout(120)
    yield page
    page.quit()


def resize(browser, width: int, dark: bool = False) -> None:
    """Give the page the size of a screen, as a phone does, and a colour scheme."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def requested(browser) -> list[str]:
    """Return the addresses that the browser asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_page_fits_asks_no_other_host_and_reports_no_error(browser, address, name, width):
    resize(browser, width)
    browser.get_log("browser")
    requested(browser)
    browser.get(f"{address}/{name}")
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide[0] <= wide[1], f"{wide[0]} px in {wide[1]} px"
    console = [
        e["message"] for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")
    ]
    assert console == []
    foreign = [url for url in requested(browser) if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []
    broken = browser.execute_script(
        "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    assert broken == []


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_axe_finds_nothing_serious(browser, address, name, dark):
    axe = os.environ.get("CF_AXE", "")
    if not Path(axe).is_file():
        pytest.skip("CF_AXE names no axe.min.js")
    resize(browser, 390 if dark else 1280, dark)
    browser.get(f"{address}/{name}")
    browser.execute_script(Path(axe).read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "const still = document.getAnimations().map(a => a.finished);"  # colours fade in
        "const later = new Promise(resolve => setTimeout(resolve, 2000));"
        "Promise.race([Promise.allSettled(still), later]).then(() =>"
        "axe.run(document, {resultTypes: ['violations']})).then(r => done(r.violations.map("
        "v => [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)])))"
    )
    assert [violation for violation in found if violation[0] in SERIOUS] == []


PLAYERS = [n for n in LOOKED_AT if n.startswith("notebooks/") and "cf-progressions" in
           (SITE / n).read_text(encoding="utf-8")]  # fmt: skip


def test_notebooks_with_progressions_have_a_player():
    assert {n[10:12] for n in PLAYERS} >= {"04", "05"}


@pytest.mark.browser
@pytest.mark.parametrize("name", PLAYERS)
def test_a_progression_is_played_by_the_keyboard_alone(browser, address, name):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    resize(browser, 1280)
    browser.get(f"{address}/{name}")
    state = partial(
        browser.execute_script,
        "const f = document.querySelector('.cf-progressions');"
        "const i = f.querySelectorAll('.cf-window img');"
        "return [f.querySelector('output').textContent, i[1].alt, i[1].style.transform,"
        " f.querySelector('input').getAttribute('aria-valuetext'), i[1].src]",
    )
    focused = partial(browser.execute_script, "return document.activeElement.id")
    press = lambda *keys: ActionChains(browser).send_keys(*keys).perform()  # noqa: E731
    browser.execute_script("document.querySelector('.cf-controls select').focus()")
    assert focused().startswith("cf-choice")
    first = state()
    press(Keys.ARROW_DOWN)
    other = state()
    assert other[4] != first[4] and other[2] == first[2]
    press(Keys.TAB)
    assert focused().startswith("cf-range")
    press(Keys.HOME)
    lowest = state()
    press(Keys.ARROW_RIGHT)
    press(Keys.ARROW_RIGHT)
    third = state()
    press(Keys.ARROW_LEFT)
    second = state()
    assert len({s[0] for s in (lowest, second, third)}) == 3
    assert len({s[2] for s in (lowest, second, third)}) == 3
    assert lowest[0] == lowest[3] and lowest[0].startswith("asked for 0.0 to 0.1")
    assert "0.0 to 0.1 asked for" in lowest[1]
    press(Keys.END)
    assert "asked for 0.9 to 1.0" in state()[0] and state()[4] == other[4]


@pytest.mark.browser
def test_the_keyboard_reaches_content_search_and_every_card(browser, address):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    resize(browser, 1280)
    browser.get(f"{address}/index.html")
    reached = set()
    for _ in range(150):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        place, outline = browser.execute_script(
            "const a = document.activeElement, s = getComputedStyle(a);"
            "return [a.getAttribute('href') || a.id || a.className || a.tagName,"
            " s.outlineStyle != 'none' || s.boxShadow != 'none' || s.textDecorationLine != 'none']"
        )
        if browser.execute_script("return document.activeElement === document.body"):
            break  # after the last one
        reached.add(place)
        assert outline, f"focus on {place} cannot be seen"
    assert "#main-content" in reached
    assert [n for n in LOOKED_AT if n.startswith("notebooks/") and n not in reached] == []
