"""The documentation site: it builds offline without a warning, is whole, loads nothing from elsewhere, and is current.

One test builds and looks at everything, so that a build is made once however tests are shared among processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

from circuits.coar import sampling
from circuits.methods import METHODS
from circuits.tasks import TASKS
from experiments import decision_log, exact_shards, run_directory
from experiments.cli import app
from experiments.docs_site import api, commands, lists, markdown, navigation, pages
from experiments.model_files import zoo
from patching import compiled

ROOT = Path(__file__).resolve().parents[1]
LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
LINKS_THAT_LOAD_NOTHING = {"canonical", "prev", "next"}

needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml")),
    reason="the extra `docs` is not installed",
)


class Page(HTMLParser):
    """What a page links to and loads, its anchors, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        for name, value in known.items():
            if (tag, name) in LOADED and known.get("rel") not in LINKS_THAT_LOAD_NOTHING:
                self.loads.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@needs_mkdocs
def test_the_site(tmp_path: Path) -> None:
    site = built(tmp_path / "site")
    found = {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}
    every_page_is_there(found)
    links_lead_somewhere(site, found)
    nothing_is_loaded_from_elsewhere(site, found)
    every_public_name_has_an_entry(site, found)
    formulas_are_rendered(found)
    search_knows_the_pages(site)
    it_works_in_a_browser(site, tmp_path)


def built(folder: Path) -> Path:
    """The site, built as `make docs` does, with every way to the network shut."""
    blocked = "http://127.0.0.1:9"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": blocked, "https_proxy": blocked},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def every_page_is_there(found: dict[str, Page]) -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    for uri in written | set(pages.generate()):
        name = uri.removesuffix(".md") + ".html"
        assert name in found, uri
        assert "<!-- README" not in found[name].text


def links_lead_somewhere(site: Path, found: dict[str, Page]) -> None:
    """Read from the built pages, so that what the theme and mkdocstrings write counts too."""
    for name, page in found.items():
        if name == "404.html":  # its links are absolute
            continue
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            here = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = here.resolve() / "index.html" if here.is_dir() else here.resolve()
            assert target.is_file(), f"{name}: {link}"
            inner = found.get(target.relative_to(site).as_posix())
            if parts.fragment and inner is not None and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in inner.anchors, f"{name}: {link}"


def nothing_is_loaded_from_elsewhere(site: Path, found: dict[str, Page]) -> None:
    for name, page in found.items():
        wrong = [link for link in page.loads if urlsplit(link).scheme in ("http", "https") or link.startswith("//")]
        assert not wrong, f"{name}: {wrong}"
    for style in site.rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\";]+", style.read_text(encoding="utf-8"))
        assert not loaded, f"{style.name}: {loaded}"


def every_public_name_has_an_entry(site: Path, found: dict[str, Page]) -> None:
    known = inventory(site / "objects.inv")
    for package in ("graphs", "patching", "circuits", "circuits.features", "circuits.coar", "patching.compiled"):
        page = found[api.uri(package).removesuffix(".md") + ".html"]
        here = {name: home for name, home, _ in api.exported(package)}
        for name in importlib.import_module(package).__all__:
            entry = here.get(name, f"{package}.{name}")
            assert entry in known, f"{package}.{name}: {entry} has no entry"
            assert name in page.text, f"{package}.{name} is not on its page"
    for method in METHODS.values():
        assert method.home.replace(":", ".") in known


def inventory(path: Path) -> set[str]:
    """The names in a Sphinx inventory, version 2: four lines of text, then compressed ones."""
    head, _, body = path.read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2")
    return {line.split()[0] for line in zlib.decompress(body).decode().splitlines()}


def formulas_are_rendered(found: dict[str, Page]) -> None:
    with_formulas = {name for name, page in found.items() if "math" in page.tags}
    assert {f"concepts/{name}.html" for name in ("masks", "scores", "searches", "judging")} <= with_formulas
    for name in with_formulas:
        left = re.findall(r"\\(?:frac|sum|text|mathrm|operatorname|big)\b|\\\[|\$\$", found[name].text)
        assert not left, f"{name}: {left}"


def search_knows_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].split("#")[0] for entry in index["docs"]}
    assert {"tutorial.html", "faq.html", "methods.html", "reference/patching/masked.html"} <= places


def it_works_in_a_browser(site: Path, folder: Path) -> None:
    """From the disk: the search answers, formulas have a size, and nothing is wider than a phone's screen."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (browser and driver and importlib.util.find_spec("selenium")):
        return
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = os.path.realpath(browser)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,900")  # the search field hides behind a button on narrow screens
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(30)
    try:
        the_search_answers(chrome, site)
        pages_fit_a_phone(chrome, site)
        asked = [json.loads(entry["message"])["message"]["params"] for entry in chrome.get_log("performance")]
        urls = {one["request"]["url"] for one in asked if "url" in one.get("request", {})}
        assert not {url for url in urls if url.startswith(("http:", "https:"))}
        assert not [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        chrome.quit()


def visit(chrome: Any, file: Path) -> None:
    """Open a page. Chromium now and then never ends a navigation, so that it is tried again."""
    from selenium.common.exceptions import TimeoutException

    for left in (2, 1, 0):
        try:
            chrome.get(file.as_uri())
            return
        except TimeoutException:
            if not left:
                raise


def the_search_answers(chrome: Any, site: Path) -> None:
    visit(chrome, site / "index.html")
    field = chrome.find_element("css selector", "input.md-search__input")
    limit = time.monotonic() + 60
    while not field.is_displayed():
        assert time.monotonic() < limit, "the search field does not show"
        time.sleep(0.1)  # the page's scripts show it
    field.send_keys("noising")
    limit = time.monotonic() + 60
    while not chrome.find_elements("css selector", ".md-search-result__link"):
        assert time.monotonic() < limit, "the search gives no answer"
        time.sleep(0.2)


def pages_fit_a_phone(chrome: Any, site: Path) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for name in ("index", "methods", "concepts/masks", "reference/patching/masked", "models", "concepts/scores"):
        visit(chrome, site / f"{name}.html")
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= 390, name
    heights = chrome.execute_script(
        "return [...document.querySelectorAll('math')].map(one => one.getBoundingClientRect().height)"
    )
    assert len(heights) > 20
    assert min(heights) > 4


# ------------------------------------------------------------------------------------------------- without a build


def test_links_lead_somewhere_in_the_repository_too() -> None:
    """Generated pages are not in it: a link to one would be dead wherever the repository is read."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a checkout")
    for name in listed.split():
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_every_file_of_a_run_is_described() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in (*run_directory.RESULTS, run_directory.STATUS, run_directory.CONFIG, run_directory.ENVIRONMENT):
        assert f"`{name}`" in text, name
    for folder, schema in ((run_directory.SHARDS, exact_shards.SCHEMA), (run_directory.SAMPLES, sampling.SCHEMA)):
        assert f"| `{folder}/` | `{schema}` |" in text
    assert f"| `{run_directory.DECISIONS}` | `{decision_log.SCHEMA}` |" in text


def test_every_method_is_on_its_page() -> None:
    text = lists.methods()
    guide = (ROOT / "docs" / "circuits.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        assert text.count(f"| `{method.name}` |") == (3 if "edge" in method.levels else 2)
        for said in (method.summary, method.cost, method.when, method.source, *method.options):
            assert said in text, method.name
        assert f"`{method.name}`" in guide, f"docs/circuits.md does not name {method.name}"
    measured = re.findall(r"^\| `(\w+)` \| \d+ \|", lists.measured(), flags=re.M)
    assert sorted(measured) == sorted(name for name, method in METHODS.items() if "edge" in method.levels)


def test_every_task_and_model_is_on_its_page() -> None:
    task_page, model_page, cards = lists.task_page(), lists.model_page(), lists.cards()
    for name in TASKS:
        if name in compiled.PROGRAMS:
            assert f"`zoo:{name}`" in model_page
        else:
            assert f"\n## {name}\n" in task_page
    for name in zoo():
        short = name.removeprefix("zoo:")
        assert f"[`{name}`](models/{short}.md)" in model_page
        assert not cards[f"models/{short}.md"].startswith("---")


def test_every_command_and_option_is_on_its_page() -> None:
    text = commands.page()

    def check(name: str, command: typer.core.TyperCommand | typer.core.TyperGroup) -> None:
        assert f"\n### wiretrace {name}\n" in text
        for parameter in command.params:
            for spelling in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{spelling}`" in text, f"{name} {spelling}"
        for inner, each in getattr(command, "commands", {}).items():
            check(f"{name} {inner}", each)

    for name, command in typer.main.get_command(app).commands.items():
        check(name, command)


def test_missed_bars_are_said() -> None:
    document = json.loads(lists.RESULTS.read_text(encoding="utf-8"))
    text = lists.benchmarks()
    for row in document["rows"]:
        assert row["name"].replace("|", "\\|") in text
        if not row["met"]:
            assert f"- {row['name']}: {row['ratio']:.2f}×, bar {row['bar']}" in text


def test_every_module_has_a_page() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in api.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not path.stem.startswith("_") or path.name == "__init__.py"
    }
    wanted = {name for name in files if not any(f"{name}.".startswith(f"{left}.") for left in api.LEFT_OUT)}
    assert set(api.modules()) == wanted


def test_guides_that_the_menu_does_not_name_are_in_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index.md", "new.md", "notebooks/two.md", "notebooks/one.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n", encoding="utf-8")
    monkeypatch.setattr(navigation, "DOCS", tmp_path)
    made = navigation.expand([{"Home": "index.md"}, {"Guides": ["*", {"Notebooks": "notebooks/*"}]}])
    assert made == [
        {"Home": "index.md"},
        {"Guides": ["new.md", {"Notebooks": ["notebooks/one.md", "notebooks/two.md"]}]},
    ]


def test_links_out_of_docs_lead_to_pages() -> None:
    def line(text: str, uri: str = "formats.md") -> str:
        return markdown.prepare(text, uri)

    assert line("[a](../graphs/export)") == "[a](reference/graphs/export/index.md)"
    assert line("[a](../graphs/schema.py#top)", "adding/x.md") == "[a](../graphs/schema.py#top)"
    assert line("[a](../../graphs/schema.py)", "adding/x.md") == "[a](../reference/graphs/schema.md)"
    assert line("[a](../CONTRIBUTING.md)") == "[a](contributing.md)"
    assert line("[a](circuits.md) `x.y` `graphs.nodes`") == "[a](circuits.md) `x.y` [`graphs.nodes`][graphs.nodes]"
    code = "```python\n`graphs.nodes` arXiv 2304.14997\n```\n"
    assert line(code) == code


def test_a_section_that_the_readme_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a section of README\.md out of start, .*; got 'Nothing'"):
        markdown.section("Nothing")


@needs_mkdocs
def test_docstrings_become_markdown() -> None:
    from experiments.docs_site.docstrings import rewritten

    table = "=====  ======\n`a`    one\n       more\n`b`    two\n=====  ======\n"
    assert rewritten(table) == "|  |  |\n| --- | --- |\n| `a` | one more |\n| `b` | two |\n"
    assert rewritten("==  ==\nx   y\n==  ==\n1   2\n==  ==\n") == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"
    assert rewritten("Example:\n    >>> 1\n    1\n") == "Examples:\n    >>> 1\n    1\n"
    assert rewritten(":math:`a_b` and this::\n\n    code\n") == "$a_b$ and this:\n\n    code\n"


@needs_mkdocs
def test_formulas_become_mathml() -> None:
    made = markdown.formulas(r'<p>so <span class="arithmatex">\(a &lt; b\)</span></p>')
    assert made.startswith("<p>so <math ")
    assert "&#x0003C;" in made
    assert 'class="formula"' in markdown.formulas('<div class="arithmatex">\\[x\\]</div>')
    with pytest.raises(ValueError, match=r"commands that latex2mathml knows; got \\arg in"):
        markdown.formulas('<div class="arithmatex">\\[\\arg\\min x\\]</div>')


def test_numbers_of_arxiv_become_links_once() -> None:
    link = "[arXiv 2304.14997](https://arxiv.org/abs/2304.14997)"
    assert markdown.arxiv_links("(after arXiv 2304.14997)") == f"(after {link})"
    assert markdown.arxiv_links(f"as in {link}.") == f"as in {link}."
    assert markdown.arxiv_links("0.12345, 12304.14997, 2304.149971") == "0.12345, 12304.14997, 2304.149971"
