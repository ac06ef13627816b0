"""The documentation's site: built without a warning, whole without a network, and its search finds things."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.chromium import chromium
from tests.journeys.processes import until

DOCS = Path(__file__).parents[2] / "docs"
_FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']([^\"']+)|<link\b[^>]*?\bhref=[\"']([^\"']+)")
_FETCHED_BY_STYLE = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")
_ELSEWHERE = re.compile(r"(?:[a-z]+:)?//")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "--keep-going", "-q", str(source), str(site)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    built = build(DOCS, made)
    assert built.returncode == 0, built.stderr
    return made


def test_every_page_is_there(site: Path) -> None:
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")} - {Path("README.html")}
    assert len(pages) > 30
    assert not [page for page in pages if not (site / page).exists()]


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    bad = {"[](other.md#nowhere)": "nowhere", "[](#no-part)": "no-part", "[gone](gone.md)": "gone.md", "![gone](gone.svg)": "gone.svg"}
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(DOCS / "conf.py", source)
    links = "\n\n".join(["[good](other.md#a-part)", *bad])
    (source / "index.md").write_text(f"# First\n\n{links}\n\n```{{toctree}}\nother\n```\n")
    (source / "other.md").write_text("# Other\n\n## A part\n")
    built = build(source, tmp_path / "site")
    assert built.returncode != 0
    told = built.stderr.splitlines()
    assert len(told) == len(bad)
    assert all(any(said in line for line in told) for said in bad.values())


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    fetched = [
        (path.name, next(filter(None, found)))
        for kinds, pattern in (("*.html", _FETCHED), ("*.css", _FETCHED_BY_STYLE))
        for path in site.rglob(kinds)
        for found in pattern.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(fetched) > 100
    assert not [each for each in fetched if _ELSEWHERE.match(each[1])]


@pytest.mark.real
def test_search_works_from_the_disk(site: Path) -> None:
    """No web server, and a browser that resolves no name."""
    with chromium("--host-resolver-rules=MAP * ~NOTFOUND") as page:
        page.open(f"{(site / 'search.html').as_uri()}?q=ProxyCommand")
        until(lambda: page.value("!!document.querySelector('.search a[href^=\"howto/ssh.html\"]')"), "the page about ssh is found")
