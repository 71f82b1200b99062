"""The site: docs/ and pages made from the code -> build/site; a warning is an error. --serve shows it at an address."""

import argparse
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from assemble import DOCS, ROOT, assemble

_WARNINGS = ("warning", "griffe:", "error")


def build(into: Path, docs: Path = DOCS) -> Path:
    """Write the site of the pages in `docs` below `into` and return its folder.

    Raises:
        ValueError: with all that the generator said, where there is a warning in it. Its own strictness passes over those
            of docstrings.
    """
    settings = assemble(into, docs)
    command = [sys.executable, "-m", "zensical", "build", "--config-file", settings.name, "--strict", "--clean"]
    ended = subprocess.run(command, cwd=into, capture_output=True, text=True, encoding="utf-8")
    output = re.sub(r"\x1b\[[\d;]*m", "", ended.stdout + ended.stderr).split("Traceback (most")[0]
    if ended.returncode or any(warning in output.lower() for warning in _WARNINGS):
        raise ValueError(output.strip())
    return into / "site"


def serve(site: Path, port: int) -> None:
    """Show a folder at this machine's own address until Ctrl-C."""
    with ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(site))) as server:
        print(f"http://127.0.0.1:{server.server_port}/index.html (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="show the site when it is built")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        site = build(ROOT / "build")
    except ValueError as error:
        sys.exit(f"{error}\nthe site has warnings (above): it is not done")
    print(f"{site / 'index.html'}: open it from disk, or `make docs-serve`")
    if arguments.serve:
        serve(site, arguments.port)
