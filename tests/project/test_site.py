"""The site: every public name described with shapes, built without a warning, nothing from elsewhere, searched from disk."""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import griffe
import pytest

from uhkd.__main__ import COMMANDS
from uhkd.cli.parser import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "website"))

from assemble import navigation, without_paths  # noqa: E402
from make_site import build  # noqa: E402
from python_pages import MODULES, public_names  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BARE = re.compile(r"\bTensor\b(?!, ['\"])")  # not Float[Tensor, "b c h w"]
# a shape in words: (B, C, H, W), a scalar, "of any shape", or a () of one number
SHAPE = re.compile(r"\([A-Za-z_\d]+, ?[^)]*\)|\(\)|scalar|any shape|\(levels, levels\)")


@pytest.fixture(scope="module")
def package():
    """The code as the site reads it: nothing is imported."""
    return griffe.load("uhkd", search_paths=[ROOT / "src"], resolve_aliases=True)


def described(value, what):
    """(what, docstring, annotations by argument) of a name and, for a class, of its public members."""
    value = value.final_target if value.is_alias else value
    kinds = {part.name: str(part.annotation or "") for part in value.parameters} if value.is_function else {}
    kinds |= {"its result": str(value.returns or "")} if value.is_function else {}
    yield what, value.docstring.value if value.docstring else "", kinds
    for name, member in value.members.items() if value.is_class else ():
        public = not name.startswith("_") and not member.is_alias
        if public and (member.is_function or "property" in member.labels):
            yield from described(member, f"{what}.{name}")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_says_what_it_is_and_the_shapes_of_its_tensors(package, module):
    names = public_names(module)
    assert names
    for name in names:
        for what, doc, kinds in described(package[f"{module}.{name}".removeprefix("uhkd.")], f"{module}.{name}"):
            assert doc.strip() or name == "__version__", f"{what} has no docstring"
            bare = [key for key, kind in kinds.items() if BARE.search(kind)]
            assert not bare or SHAPE.search(doc), f"{what}: say the shape of {', '.join(bare)}: {doc!r}"


class Page(HTMLParser):
    """What a page refers to, its anchors, and its images without words."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids, self.silent = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if found.get("id") else set()
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found.get("href") or "")
        if tag == "img" and not (found.get("alt") or "").strip():
            self.silent.append(found.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of docs/ as it stands, built strictly."""
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_of_docs_is_there_and_nothing_is_loaded_from_elsewhere(site, pages):
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() in pages
    for name, page in pages.items():
        assert not [address for address in page.loaded if "//" in address], name
        assert not page.silent, f"{name}: images without words"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", sheet.read_text(encoding="utf-8")), (
            sheet.name
        )
    index = pages["index.html"]
    assert "iframe-worker.js" in index.loaded[0] + "".join(index.loaded)


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site, pages):
    lost = []
    for name, page in pages.items():
        if name == "404.html":
            continue
        for link in page.links:
            address = urlparse(link)
            if address.scheme or address.netloc:
                continue
            target = (site / name).parent / unquote(address.path) if address.path else site / name
            target = target / "index.html" if target.is_dir() else target
            at = target.resolve().relative_to(site.resolve()).as_posix() if target.exists() else None
            if at is None or (address.fragment and at in pages and unquote(address.fragment) not in pages[at].ids):
                lost.append(f"{name}: {link}")
    assert not lost, "\n".join(lost[:20])


@pytest.mark.slow
def test_the_reference_has_every_name_verb_and_option(site, pages):
    for module in MODULES:
        ids = pages[f"reference/python/{module}.html"].ids
        assert {f"{module}.{name}" for name in public_names(module)} - {"uhkd.__version__"} <= ids, module
    assert set(COMMANDS) <= pages["reference/command-line.html"].ids
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "command-line.html").read_text(encoding="utf-8"))
    for verb, schema in SCHEMAS.items():
        for name, field in schema.model_fields.items():
            shown = name.upper() if name in getattr(schema, "positional", ()) else "--" + name.replace("_", "-")
            assert shown in text, f"{verb} {shown}"
            assert field.description, f"{verb} {shown} says nothing"
    assert "> 0" in text.replace("&gt;", ">") and "required" in text


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Home\n\n[nowhere](missing.md), [glossary](glossary.md)\n", encoding="utf-8")
    (docs / "glossary.md").write_text("# Glossary\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"index.md:3:11"):
        build(tmp_path / "build", docs)


def test_links_out_of_docs_become_words():
    fence = "```\n[kept](../src/b.py)\n```\n"
    text = (
        f"[code](../../src/a.py) [`results/x.json`](../../results/x.json)\n{fence}[home](../index.md) ![x](../y.png)\n"
    )
    told = f"code (`src/a.py`) `results/x.json`\n{fence}[home](../index.md) ![x](../y.png)\n"
    assert without_paths(text, Path("tutorials/page.md")) == told


def test_pages_that_are_missing_are_left_out_and_new_ones_are_shown():
    nav = [{"Home": "index.md"}, {"Guides": ["gone.md"]}, {"Reference": ["reference/index.md"]}]
    there = {"index.md", "new.md", "reference/index.md", "reference/python/uhkd.md"}
    assert navigation(nav, there) == [
        {"Home": "index.md"},
        {"Reference": ["reference/index.md", {"uhkd": "reference/python/uhkd.md"}]},
        {"More": ["new.md"]},
    ]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package); nothing is installed by a test")
@pytest.mark.parametrize("dark", [False, True])
def test_the_site_opens_and_is_searched_from_disk(site, dark):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark" if dark else "light", viewport={"width": 390, "height": 844})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.as_uri()}/index.html")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.wait_for_timeout(500)
        page.keyboard.press("/")
        page.wait_for_timeout(500)
        page.keyboard.type("glossar")
        page.wait_for_selector("a[href*='?h=']", timeout=20_000)
        found = page.locator("a[href*='?h=']").all_inner_texts()
        assert any("Glossary" in text for text in found)
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", shade)[:3])) < 200) == dark
        browser.close()
    assert not said
    assert not [address for address in asked if not address.startswith(("file:", "data:", "blob:", "about:"))]
