"""Every link and anchor within a built site, and every relative link of Markdown files, leads somewhere.

python .ci/links.py SITE FILE.md...; addresses of other hosts are not fetched.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The addresses that a page asks for, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            elif name in ("id", "name"):
                self.anchors.add(value or "")


def broken(path: Path, links: list[str], pages: dict[Path, Page]) -> list[str]:
    """The links of a file to what is not there."""
    found = []
    for link in links:
        url = urlsplit(link)
        goal = (path.parent / unquote(url.path)).resolve() if url.path else path
        goal = goal / "index.html" if pages and goal.is_dir() else goal
        here = goal.exists() and (goal not in pages or unquote(url.fragment) in pages[goal].anchors)
        if not url.scheme and not url.netloc and not here:
            found.append(f"{path}: {link}")
    return found


site, *files = (Path(argument).resolve() for argument in sys.argv[1:])
pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # whose links are from the root
wrong = [line for path, page in pages.items() for line in broken(path, page.links, pages)]
for path in files:
    wrong += broken(path, re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text(encoding="utf-8")), {})
print("\n".join([*wrong, f"{len(pages)} pages and {len(files)} files, {len(wrong)} broken links"]))
sys.exit(bool(wrong) or not pages)
