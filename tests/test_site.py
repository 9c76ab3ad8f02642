"""The documentation site holds every page and every public name, its links lead somewhere, and it builds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastoptim as fo

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILT = {"_build", "api"}
PAGES = [p for p in sorted(DOCS.rglob("*")) if p.suffix in (".md", ".ipynb") and not BUILT & set(p.parts)]
TEXTS = [*(path for path in PAGES if path.suffix == ".md"), *ROOT.glob("*.md"), ROOT / "examples" / "README.md"]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


def listed(index):
    """What the table of contents of an index page lists, in order."""
    block = re.search(r"^```\{toctree\}\n(.*?)^```", index.read_text(), re.MULTILINE | re.DOTALL)[1]
    return [line for line in block.split() if line and not line.startswith(":")]


def without_a_mention(pages):
    """Pages that the index of their section does not link to, for readers on a code host."""
    for page in pages:
        index = page.parent / "index.md"
        if page != index and f"]({page.name})" not in index.read_text():
            yield page.relative_to(DOCS).as_posix()


def test_every_page_is_in_the_site_and_its_section_links_to_it():
    sections = [name.partition("/")[0] for name in listed(DOCS / "index.md")]
    assert sections == ["start", "guide", "howto", "reference", "development"]
    assert [page.name for page in PAGES if page.parent == DOCS] == ["index.md"], "pages belong to a section's folder"
    assert {page.parent.name for page in PAGES if page.parent != DOCS} == set(sections)
    assert list(without_a_mention(page for page in PAGES if page.parent != DOCS)) == []


def test_a_page_without_a_mention_is_seen():
    assert list(without_a_mention([DOCS / "howto" / "nothing.md"])) == ["howto/nothing.md"]


def anchors(path):
    """The anchors that headings get, on a code host and in the site."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in LINK.findall(text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            yield f"{path.relative_to(ROOT)}: {target}#{anchor}"


def test_links_lead_somewhere(tmp_path, monkeypatch):
    assert len(TEXTS) > 25
    assert [dead for path in TEXTS for dead in dead_links(path)] == []
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# A page\n[here](#a-page) [there](gone.md) [nor](#b-page)\n")
    assert list(dead_links(tmp_path / "page.md")) == ["page.md: gone.md#", "page.md: #b-page"]


def public():
    """Public names, as the reference writes them. Modules stand for what they hold, adapters for themselves."""
    for name in fo.__all__:
        value = getattr(fo, name)
        if name == "adapters":
            yield from (f"adapters.{module}" for module in value.__all__)
        elif type(value) is type(fo):
            yield from (f"{name}.{inside}" for inside in value.__all__)
        elif name != "__version__":
            yield name


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference" / "index.md").read_text()
    blocks = re.findall(r"^```\{eval-rst\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = [line.strip() for block in blocks for line in block.splitlines() if re.fullmatch(r"   [\w.]+", line)]
    assert len(names) == len(set(names))
    assert set(public()) - set(names) == set(), "public names that docs/reference/index.md does not list"
    assert set(names) - set(public()) == {"backends.cuda.on_stream"}


def test_the_picture_of_the_architecture_is_that_of_the_code():
    picture = importlib.import_module("docs.architecture_picture")
    assert picture.PICTURE.read_text() == picture.draw(), "run python -m docs.architecture_picture"
    assert picture.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert "training" in picture.imports()["tuning"]


def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("sphinx", "numpydoc", "myst_nb", "pydata_sphinx_theme", "sphinx_copybutton", "autograd", "thinc"):
        reason = f'LOUD: the site is not built without {needed}: pip install ".[docs]", or make docs'
        pytest.importorskip(needed, reason=reason)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", DOCS, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("fastoptim.Adam", "fastoptim.schedules.cosine"):
        assert f'id="{name}"' in (tmp_path / "reference" / "api" / f"{name}.html").read_text()
