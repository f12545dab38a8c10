"""The page as a real browser runs it: headless Chromium through chromedriver, from the disk and without a network."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from graphs.export import html
from tests.graphs.page_samples import HOSTILE, MADE, NAMES, large, over_features, rival, small

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver on this machine")

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --disable-dev-shm-usage --window-size=1280,800"
)
PATTERN = [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.125, 0.25, 0.625]]
PAGES = {
    "plain": (small(), {}),
    "compared": (small(), {"other": rival()}),
    "rich": (
        small(),
        {
            "groups": {"early": ["a0.h0", "a0.h1"], "late": ["a1.h1"]},
            "prompt": html.Prompt(["The", " cat", " sat"], " down", " up"),
            "attention": {"a1.h1": PATTERN},
        },
    ),
    "hostile": (
        small({"model": HOSTILE, HOSTILE: HOSTILE}),
        {"title": HOSTILE, "groups": {HOSTILE: ["m0"]}, "prompt": html.Prompt([HOSTILE, "b"], HOSTILE, HOSTILE)},
    ),
    "large": (large(), {}),
    "features": (over_features(MADE), {}),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = os.path.realpath(BROWSER or "")
    for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.folder = folder
    yield driver
    driver.quit()


class Page:
    def __init__(self, driver, file: Path, *, wide=1280, high=800, dark=False) -> None:
        self.driver = driver
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(file.as_uri())
        self.rest()

    def js(self, code, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def rest(self) -> None:
        """Wait until two frames have been drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def node(self, name):
        return next(node for node in self.driver.find_elements(By.CSS_SELECTOR, ".node") if node.text == name)

    def text(self, selector):
        return self.js(f"document.querySelector({selector!r}).textContent")

    def keys(self, *keys) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()
        self.rest()

    def slide(self, place) -> None:
        self.js("(s => { s.value = arguments[0]; s.dispatchEvent(new Event('input')) })(threshold)", place)

    def ink(self, canvas="edges"):
        """How many pixels of a canvas are not transparent."""
        self.rest()
        return self.js(
            "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            ".filter((value, place) => place % 4 === 3 && value > 0).length)(document.getElementById(arguments[0]))",
            canvas,
        )

    def box(self, element):
        """Where an element is seen, its scale included."""
        return self.js("arguments[0].getBoundingClientRect()", element)

    @property
    def chosen(self):
        return self.js("wiretrace.chosen")

    def problems(self):
        """What the console says, but for advice on the tests' own reading of pixels."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in said if "willReadFrequently" not in message]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, (circuit, options) in PAGES.items():
        html.write(circuit, folder / f"{name}.html", **options)
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture
def visit(browser, files):
    browser.get_log("browser")
    pages = []

    def go(name, **look):
        pages.append(Page(browser, files[name], **look))
        return pages[-1]

    yield go
    assert [problem for page in pages for problem in page.problems()] == []


def test_edges_are_drawn_and_counted(visit):
    page = visit("plain")
    assert page.ink() > 2_000
    assert page.text("#count") == "7 of 7 edges"
    assert set(page.js("wiretrace.shown")) == set(NAMES)
    assert page.js("document.querySelectorAll('.node').length") == 6
    pixels = page.js(
        "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])(document.getElementById('edges'))"
    )
    solid = {tuple(pixels[at : at + 3]) for at in range(0, len(pixels), 4) if pixels[at + 3] > 200}
    blue = [colour for colour in solid if colour[2] > 150 > colour[0]]
    red = [colour for colour in solid if colour[0] > 200 and colour[2] < 80]
    assert blue
    assert red


def test_a_click_selects_and_the_panel_lists_edges_by_score(visit):
    page = visit("plain")
    page.node("a1.h1").click()
    page.rest()
    assert page.chosen == "a1.h1"
    rows = [row.text.split() for row in page.driver.find_elements(By.CSS_SELECTOR, "#panel tbody tr")]
    assert rows == [["logits", "–", "−4.00"], ["m0", "v", "−2.00"], ["a0.h0", "k", "−1.50"]]
    assert page.find("#panel h2").text.split("\n") == ["a1.h1", "attention head"]
    assert page.ink("lit") > 100
    page.find("#panel .link").click()
    assert page.chosen == "logits"
    ActionChains(page.driver).move_to_element_with_offset(page.find("#stage"), -400, -150).click().perform()
    assert page.chosen is None


def test_an_edge_can_be_hovered_and_selected(visit):
    page = visit("plain")
    stage, below, above = (
        page.box(element) for element in (page.find("#stage"), page.node("a1.h1"), page.node("logits"))
    )
    x = (below["left"] + below["right"] - stage["left"] - stage["right"]) / 2
    y = (below["top"] + above["bottom"] - stage["top"] - stage["bottom"]) / 2
    ActionChains(page.driver).move_to_element_with_offset(page.find("#stage"), round(x), round(y)).perform()
    page.rest()
    assert page.find("#tip").text == "a1.h1->logits\n−4.00 (helps)"
    ActionChains(page.driver).click().perform()
    assert page.chosen == "a1.h1->logits"


def test_hovering_a_node_makes_its_edges_stand_out(visit):
    page = visit("plain")
    assert page.ink("lit") == 0
    ActionChains(page.driver).move_to_element(page.node("m0")).perform()
    assert page.ink("lit") > 100
    near = {node.text for node in page.driver.find_elements(By.CSS_SELECTOR, ".node.near")}
    assert near == {"m0", "a0.h1", "a1.h1", "logits"}


def test_the_slider_hides_the_weakest_and_counts(visit):
    page = visit("plain")
    before = page.ink()
    page.slide(3)  # scores by size: 0.125 0.25 0.5 1 1.5 2 4
    assert page.text("#count") == "4 of 7 edges"
    assert set(page.js("wiretrace.shown")) == {name for name, score in NAMES.items() if abs(score) >= 1}
    assert page.find("#least").get_attribute("value") == "1"
    assert page.ink() < before
    page.js("(s => { s.value = '1.6'; s.dispatchEvent(new Event('input')) })(least)")
    assert page.text("#count") == "2 of 7 edges"
    page.slide(0)
    assert page.text("#count") == "7 of 7 edges"


def test_absolute_scores_drop_the_sign(visit):
    page = visit("plain")
    page.node("m0").click()
    assert [cell.text for cell in page.driver.find_elements(By.CSS_SELECTOR, "td.number")] == [
        "−2.00",
        "+1.00",
        "+0.125",
    ]
    page.js("document.querySelector('[value=absolute]').click()")
    assert [cell.text for cell in page.driver.find_elements(By.CSS_SELECTOR, "td.number")] == ["2.00", "1.00", "0.125"]
    assert "hurts" not in page.find("#legend").text


def test_search_and_keys(visit):
    page = visit("plain")
    page.keys("/")
    assert page.js("document.activeElement.id") == "search"
    page.keys("a1")
    assert page.find("#found li").text.split()[0] == "a1.h1"
    page.keys(Keys.ENTER)
    assert page.chosen == "a1.h1"
    assert page.js("document.activeElement.textContent") == "a1.h1"
    page.keys(Keys.ARROW_DOWN)
    assert page.chosen == "m0"  # along the strongest edge in
    page.keys(Keys.ARROW_UP)
    assert page.chosen == "a1.h1"
    page.keys(Keys.ARROW_UP)
    assert page.chosen == "logits"
    page.keys(Keys.ESCAPE)
    assert page.chosen is None
    page.keys("?")
    assert page.js("document.getElementById('guide').open")
    page.keys(Keys.ESCAPE)
    assert not page.js("document.getElementById('guide').open")
    page.keys("/", "m0->log", Keys.ENTER)
    assert page.chosen == "m0->logits"
    page.keys("/", "nothing such")
    assert page.find("#found").text == "Nothing of that name."
    page.keys(Keys.ESCAPE)
    assert not page.find("#found").is_displayed()


def test_the_tab_key_reaches_everything_and_focus_is_seen(visit):
    page = visit("plain")
    stops = []
    for _ in range(20):
        page.keys(Keys.TAB)
        stops.append(page.js("document.activeElement.id || document.activeElement.classList[0] || 'body'"))
        if stops[-1] == "body":
            break
        assert page.js("getComputedStyle(document.activeElement).outlineStyle") != "none" or stops[-1] == ""
        if len(stops) > 2 and stops[-1] == stops[0]:
            break
    wanted = [
        "skip",
        "search",
        "save",
        "theme",
        "help",
        "node",
        "closer",
        "farther",
        "fit",
        "least",
        "threshold",
    ]
    assert stops[: len(wanted)] == wanted
    unnamed = page.js(
        "[...document.querySelectorAll('button, input')].filter(e => !(e.textContent.trim() || e.ariaLabel || "
        "(e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_an_address_can_name_what_is_selected(visit):
    page = visit("plain")
    for name in ("m0", "m0->a1.h1<v>"):
        page.js("(location.hash = encodeURIComponent(arguments[0]))", name)
        page.rest()
        assert page.chosen == name
    page.js("(location.hash = '%')")
    page.rest()
    assert page.chosen == "m0->a1.h1<v>"


def test_zoom_and_pan_move_what_is_drawn(visit):
    page = visit("plain")
    scale = page.js("wiretrace.view.k")
    page.keys("+")
    assert page.js("wiretrace.view.k") == pytest.approx(1.3 * scale)
    x = page.js("wiretrace.view.x")
    ActionChains(page.driver).move_to_element_with_offset(page.find("#stage"), -400, 0).click_and_hold().move_by_offset(
        60, 20
    ).release().perform()
    page.rest()
    assert page.js("wiretrace.view.x") == pytest.approx(x + 60)
    page.keys("0")
    assert page.js("wiretrace.view.k") == pytest.approx(scale)
    page.js("document.getElementById('stage').dispatchEvent(new WheelEvent('wheel', {deltaY: -100, cancelable: true}))")
    assert page.js("wiretrace.view.k") > scale


def test_compared_circuits_can_be_switched(visit):
    page = visit("compared")
    assert [page.text(f"#n-{name}") for name in ("a", "b", "both")] == ["2", "1", "5"]
    assert page.text("#count") == "8 of 8 edges"
    page.slide(7)  # the larger of both scores counts: 0.25 0.75 1 1 1 3 4 4
    assert set(page.js("wiretrace.shown")) == {"m0->a1.h1<v>", "a1.h1->logits"}
    page.slide(0)
    page.find("#only-a").click()
    assert page.text("#count") == "6 of 8 edges"
    page.find("#both").click()
    assert page.js("wiretrace.shown") == ["m1->logits"]
    page.find("#only-b").click()
    assert page.text("#count") == "0 of 8 edges"
    page.find("#both").click()
    page.node("m0").click()
    header = [cell.text for cell in page.driver.find_elements(By.CSS_SELECTOR, "#panel th")]
    assert header[:4] == ["to", "port", "A", "B"]
    assert [cell.text for cell in page.driver.find_elements(By.CSS_SELECTOR, "#panel td.number")][:2] == [
        "−2.00",
        "−4.00",
    ]


def test_roles_prompt_and_attention(visit):
    page = visit("rich")
    assert {"early", "late"} <= set(page.find("#legend").text.split("\n"))
    tone = "getComputedStyle(arguments[0]).getPropertyValue('--tone')"
    assert page.js(tone, page.node("a0.h0")) == page.js(tone, page.node("a0.h1")) != page.js(tone, page.node("a1.h1"))
    assert page.text("#tokens") == "The cat sat"
    assert page.text("#answer") == "→ down rather than up"
    page.node("a1.h1").click()
    heat = "[...document.querySelectorAll('.token')].map(e => Number(e.style.getPropertyValue('--heat')))"
    assert page.js(heat) == PATTERN[2]
    page.driver.find_elements(By.CSS_SELECTOR, ".token")[1].click()
    assert page.js(heat) == PATTERN[1]
    assert page.js("[pattern.width, pattern.height]") == [3, 3]
    page.keys(Keys.ESCAPE)
    assert page.js(heat) == [0, 0, 0]


def test_the_picture_is_saved_and_is_svg(visit):
    page = visit("plain")
    page.slide(3)
    page.find("#save").click()
    file = page.driver.folder / "circuit.svg"
    deadline = time.monotonic() + 5
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    tree = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    titles = {title.text.split(" ")[0] for title in tree.iterfind(f".//{space}path/{space}title")}
    assert titles == {name for name, score in NAMES.items() if abs(score) >= 1}
    assert {text.text for text in tree.iter(f"{space}text")} >= {"input", "a0.h0", "m0", "a1.h1", "logits", "layer 0"}


def test_hostile_text_is_shown_and_not_run(visit):
    page = visit("hostile")
    page.node("m0").click()
    page.js("(made.open = table.open = true)")
    page.rest()
    assert page.js("window.hacked === undefined")
    assert page.js("document.querySelectorAll('img').length") == 0
    assert page.js("document.scripts.length") == 2
    start = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    for place in ("#title", "#summary", "#tokens", "#answer", "#legend", "#provenance dt:last-of-type", "#panel"):
        assert start in page.text(place), place
    assert start in ElementTree.fromstring(page.js("wiretrace.picture()"))[0].text


def test_the_policy_stops_what_should_not_run(browser, visit, files, tmp_path):
    """With the escaping broken on purpose, the browser itself refuses the script."""
    page = files["plain"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.replace("<noscript>", "<script>window.hacked = 1</script><img src=x onerror=hacked()><noscript>")
    )
    browser.get(broken.as_uri())
    assert browser.execute_script("return window.hacked === undefined && wiretrace.shown.length === 7")
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_dark_and_light(visit):
    page = visit("plain", dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    brightness = sum(map(int, re.findall(r"\d+", page.js(background))[:3]))
    assert brightness < 120
    page.find("#theme").click()
    assert sum(map(int, re.findall(r"\d+", page.js(background))[:3])) > 690
    light = visit("plain")
    assert sum(map(int, re.findall(r"\d+", light.js(background))[:3])) > 690


@pytest.mark.parametrize("name", ["compared", "rich", "hostile"])
@pytest.mark.parametrize(("wide", "high"), [(1280, 800), (390, 844)])
def test_nothing_overflows_sideways(visit, name, wide, high):
    page = visit(name, wide=wide, high=high)
    page.node("a1.h1").click()
    page.js("(made.open = table.open = true)")
    page.rest()
    assert page.js("innerWidth") == wide
    assert page.js("document.documentElement.scrollWidth") == page.js("document.documentElement.clientWidth") <= wide
    stage = page.box(page.find("#stage"))
    assert stage["width"] > 0.6 * wide
    for node in page.driver.find_elements(By.CSS_SELECTOR, ".node"):
        box = page.box(node)
        assert stage["left"] <= box["left"] < box["right"] <= stage["right"]
        assert stage["top"] <= box["top"] < box["bottom"] <= stage["bottom"]


def test_five_thousand_edges_load_and_move(visit, record_testsuite_property):
    start = time.perf_counter()
    page = visit("large")
    assert page.ink() > 50_000
    assert time.perf_counter() - start < 10
    assert page.text("#count") == "5,000 of 5,000 edges"
    redraw = page.driver.execute_async_script(
        "const done = arguments[0], start = performance.now(); wiretrace.redraw(); requestAnimationFrame(() => {"
        "document.getElementById('edges').getContext('2d').getImageData(0, 0, 1, 1); done(performance.now() - start) })"
    )
    drawn = page.js("wiretrace.timing.draws")
    frames = page.driver.execute_async_script(
        "const done = arguments[0], times = []; let last = performance.now(); const step = () => {"
        "const now = performance.now(); times.push(now - last); last = now; wiretrace.zoom(1.01);"
        "if (times.length < 20) requestAnimationFrame(step); else done(times) }; requestAnimationFrame(step)"
    )
    record_testsuite_property("redraw_ms", redraw)
    record_testsuite_property("median_frame_ms", sorted(frames)[10])
    assert redraw < 2_000
    assert sorted(frames)[10] < 100, frames  # a picture is moved while the hand moves
    assert page.js("wiretrace.timing.draws") - drawn <= 3
    page.slide(4_900)
    assert page.text("#count") == "100 of 5,000 edges"


def test_the_table_says_where_it_is_cut(visit):
    page = visit("large")
    page.find("#table summary").click()
    page.rest()
    assert page.js("document.querySelectorAll('#rows tbody tr').length") == 500
    assert page.find("#rows p").text == "The strongest 500 of the 5,000 edges that are shown."


def test_a_notebook_frame_runs_the_page(browser, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(
        f"<!DOCTYPE html><title>n</title>{html.inline(small(), height=500)._repr_html_()}", encoding="utf-8"
    )
    browser.get(file.as_uri())
    browser.switch_to.frame(0)
    assert browser.execute_script("return wiretrace.shown.length") == 7
    browser.switch_to.default_content()


# ------------------------------------------------------------------------------------------------------ features


def called(page, name):
    return page.find(f'.node[data-name="{name}"]')


def test_features_have_short_names_and_error_terms_dashes(visit):
    page = visit("features")
    assert called(page, "a0.f2@4").text == "f2"
    assert called(page, "r0.f3@2").text == "f3 plural noun"
    styles = {
        node.get_attribute("data-name"): node.value_of_css_property("border-top-style")
        for node in page.driver.find_elements(By.CSS_SELECTOR, ".node")
    }
    assert len(styles) == len(over_features().nodes)
    assert {name for name, style in styles.items() if style == "dashed"} == {"r0.err@1", "a0.err@4", "m2.err@4"}
    assert page.js("window.hacked") is None


def test_a_feature_says_what_it_is_and_marks_its_position(visit):
    page = visit("features")
    called(page, "a1.f1042@4").click()
    page.rest()
    assert page.find("#panel h2").text.split("\n") == ["a1.f1042@4", "feature of the attention output"]
    assert page.find("#panel p.called").text == "WWWW subject is plural"
    panel = page.find("#panel").text
    assert "own effect −0.250 (helps)" in panel
    assert 'layer 1, position 4, " cabinet"' in panel
    marked = [chip.text for chip in page.driver.find_elements(By.CSS_SELECTOR, ".token.at")]
    assert [text.strip() for text in marked] == ["The", "keys", "cabinet"]  # those of its neighbours too
    page.keys(Keys.ARROW_UP)
    assert page.chosen in ("r1.f90@4", "r1.f512@4")


def test_nodes_are_coloured_by_their_own_effect(visit):
    page = visit("features")
    assert page.find('[name="node-colour"][value="score"]').is_selected()
    fills = {name: called(page, name).value_of_css_property("background-color") for name in ("r2.f8@4", "input.f5@1")}
    assert len(set(fills.values())) == 2
    assert "node helps" in page.find("#legend").text
    rows = [row.text.split("\n")[0] for row in page.driver.find_elements(By.CSS_SELECTOR, "#panel tbody tr")]
    assert rows[0].startswith("input.f5@1")
    page.js("document.querySelector('[name=node-colour][value=kind]').click()")
    page.rest()
    assert "feature of the residual stream" in page.find("#legend").text
    assert called(page, "r2.f8@4").value_of_css_property("background-color") != fills["r2.f8@4"]
    assert not visit("plain").find("#by-score").is_displayed()


def test_features_are_found_by_what_people_call_them(visit):
    page = visit("features")
    page.keys("/", "plural noun")
    page.rest()
    assert page.find("#found li").text.startswith("r0.f3@")
    page.keys(Keys.ENTER)
    assert page.chosen.startswith("r0.f3@")


def test_the_saved_picture_has_sites_columns_and_dashes(visit):
    root = ElementTree.fromstring(visit("features").js("wiretrace.picture()"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"embed", "attn", "MLP", "resid", "1: The", "4: cabinet", "f3 plural noun"} <= set(texts)
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert sum(box.get("stroke-dasharray") is not None for box in boxes) == 3
