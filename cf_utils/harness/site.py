"""The source of the static site, for Sphinx: `python -m cf_utils.harness.site FOLDER`.

The folder gets the layout of the repository, so that the links between its pages hold: notebooks
with the outputs of published runs (`site_pages`), documents, galleries of results, and every file
that one of them links to. `docs/conf.py` is the configuration, `docs/index.md` the front page.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from cf_utils.core import files
from cf_utils.harness import folders, notebooks, records, site_pages, site_progressions, story

DOCUMENTS = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md",
    "results/README.md",
)  # fmt: skip
FRONT = Path("index.md")
CARDS = Path("cards.md")
RESULTS = Path("results/README.md")  # its children are the galleries of all runs
EXTRA = "extra"  # files of the site that are no pages
API = "api"  # written and kept by Sphinx
_LINK = re.compile(r"(\]\()([^)\s#]+)")  # of Markdown: text](target


@dataclass
class Source:
    """A folder that holds exactly the files that were put there.

    Files that are already there with the same content stay untouched, so that Sphinx does not build
    their pages again.
    """

    folder: Path
    put_there: set[Path] = field(default_factory=set)

    def put(self, place: Path, content: bytes) -> None:
        """Write a file; `place` is its path inside the folder."""
        path = self.folder / place
        self.put_there.add(path)
        if not path.exists() or path.read_bytes() != content:
            with files.whole_file(path) as part:
                part.write_bytes(content)

    def copy(self, path: Path) -> None:
        """Copy a file of the project to the same place."""
        self.put(path.resolve().relative_to(folders.project().resolve()), path.read_bytes())

    def remove_others(self) -> None:
        """Remove all other files, except those below `API`."""
        for path in self.folder.rglob("*"):
            kept = path in self.put_there or path.relative_to(self.folder).parts[0] == API
            if path.is_file() and not kept:
                path.unlink()


def write(target: Path) -> Path:
    """Write the whole source to an empty or new folder, or over an old source; return the folder.

    Raises ValueError for a folder that holds anything but an old source.
    """
    if target.exists() and any(target.iterdir()) and not (target / CARDS).exists():
        raise ValueError(f"target: got {target}, expected an empty folder or an old source")
    (target / EXTRA).mkdir(parents=True, exist_ok=True)
    source = Source(target)
    source.put(CARDS, cards().encode())
    for name in notebooks.paths():
        _write_notebook(name, source)
    for path in _documents():
        _write_document(path, source)
    source.remove_others()
    return target


def _documents() -> list[Path]:
    """Return the Markdown files that become pages."""
    root = folders.project()
    documents = [root / name for name in DOCUMENTS if (root / name).exists()]
    return [
        *documents,
        *sorted((root / "docs").glob("*.md")),
        *sorted((root / "results").glob("*/*/README.md")),
    ]


def _write_notebook(name: str, source: Source) -> None:
    """Write a notebook's page, the notebook itself for download, and the files that it shows."""
    path = notebooks.paths()[name]
    strips, player = site_progressions.make(name)
    for place, content in strips.items():
        source.put(Path(EXTRA) / place, content)
    page = site_pages.build(name, player)
    for cell in (cell for cell in page.cells if cell.cell_type == "markdown"):
        _copy_linked(cell.source, path.parent, source)
    if folder := site_pages.published(name):
        for figure in folder.glob("figures/*.png"):
            source.copy(figure)
    source.put(Path("notebooks") / path.name, nbformat.writes(page).encode())
    source.put(Path("notebooks") / "original" / path.name, path.read_bytes())


def _write_document(path: Path, source: Source) -> None:
    """Copy a document and what it links to; docs/index.md becomes the front page."""
    root = folders.project()
    place = path.relative_to(root)
    base = path.parent
    if place == "docs" / FRONT:
        place, base = FRONT, root
    text = path.read_text(encoding="utf-8")
    _copy_linked(text, base, source)
    text = redirect_readme(text, base)
    if place == RESULTS:
        text += "\n```{toctree}\n:hidden:\n:glob:\n\n*/*/README\n```\n"
    source.put(place, text.encode())


def redirect_readme(text: str, base: Path) -> str:
    """Let links to the README, which is part of the front page, lead to the front page.

    `base` is the folder from which the links of the text start.
    """
    readme = (folders.project() / "README.md").resolve()

    def replace(found: re.Match[str]) -> str:
        if (base / found[2]).resolve() == readme:
            return found[1] + found[2].removesuffix("README.md") + FRONT.name
        return found[0]

    return _LINK.sub(replace, text)


def _copy_linked(text: str, base: Path, source: Source) -> None:
    """Copy the files of the project that a text links to, unless they become pages."""
    root = folders.project().resolve()
    for _, link in _LINK.findall(text):
        path = (base / link).resolve()
        if path.is_file() and path.is_relative_to(root) and path.suffix not in (".md", ".ipynb"):
            source.copy(path)


def cards() -> str:
    """Return a grid with one card per notebook: its title, its question, its best figure."""
    grid = []
    for name in notebooks.paths():
        lines = [f":::{{grid-item-card}} {notebooks.title(name)}", f":link: notebooks/{name}"]
        lines.append(":link-type: doc")
        folder = site_pages.published(name)
        summary = story.summarise(name, records.read(folder / "metrics.json")) if folder else None
        for picture in story.list_pictures(name, folder) if folder and summary else ():
            if picture.name == summary.figure:
                place = picture.path.relative_to(folders.project()).as_posix()
                lines += [f":img-top: {place}", f":img-alt: {picture.caption}"]
        grid.append("\n".join([*lines, "", summary.question if summary else "", ":::"]))
    return "\n".join(["::::{grid} 1 2 2 3", ":gutter: 3", "", *grid, "::::", ""])


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
