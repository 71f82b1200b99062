"""docs/ and pages made from the code -> build/pages and build/mkdocs.yml, from which the site is built (`make docs`)."""

import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from python_pages import MODULES, python_page
from reference_pages import command_line, recipe_options, reference

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)\s]*)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def assemble(into: Path, docs: Path = DOCS) -> Path:
    """Write all pages and the settings below `into`, in place of what was there, and return the path of the settings."""
    pages = into / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(docs, pages)
    for asset in ("site.css", "iframe-worker.js"):
        shutil.copy(Path(__file__).with_name(asset), pages / asset)
    for name, text in generated().items():
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8")
    for page in pages.rglob("*.md"):
        page.write_text(without_paths(page.read_text(encoding="utf-8"), page.relative_to(pages)), encoding="utf-8")
    settings = yaml.safe_load(Path(__file__).with_name("site.yml").read_text(encoding="utf-8"))
    there = {page.relative_to(pages).as_posix() for page in pages.rglob("*.md")}
    settings["nav"] = navigation(settings["nav"], there)
    settings["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT / "src")]
    path = into / "mkdocs.yml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def generated() -> dict[str, str]:
    """Markdown by page name: the command line, the recipe's options and the Python names, from the code."""
    pages = {"reference/command-line.md": command_line(), "reference/recipe.md": recipe_options()}
    for module in MODULES:
        pages[f"reference/python/{module}.md"] = python_page(module)
    return {"reference/index.md": reference(MODULES), **pages}


def without_paths(text: str, page: Path) -> str:
    """Return the page with links that leave docs/ as plain text: the site has no source files."""

    def link_text(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", page.parent.as_posix(), link["target"]))
        if target.startswith("docs/"):
            return link[0]
        text = link["text"]
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    lines: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        lines += [_LINK.sub(link_text, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*lines, _LINK.sub(link_text, text[end:])])


def navigation(nav: list[Any], there: set[str]) -> list[Any]:
    """The settings' navigation without pages that do not exist; existing ones that it does not name come under More."""
    named: set[str] = set()

    def lines(entries: list[Any]) -> list[Any]:
        result: list[Any] = []
        for entry in entries:
            title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
            if isinstance(value, list):
                if below := lines(value):
                    result.append({title: below})
            elif value in there:
                named.add(value)
                result.append(entry)
        return result

    shown = lines(nav)
    reference = next(entry["Reference"] for entry in shown if isinstance(entry, dict) and "Reference" in entry)
    python = sorted(page for page in there - named if page.startswith("reference/python/"))
    reference += [{Path(page).stem: page} for page in python]
    more = sorted(there - named - set(python))
    return [*shown, {"More": more}] if more else shown
