"""The documents' links lead somewhere, and the guide's contents name all its parts."""

import re
from pathlib import Path

import pytest
from server_process import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")})
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(page: Path, level: str = "#+") -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.findall(rf"(?m)^{level} (.+)$", text)


def anchor(heading: str) -> str:
    """The name of a heading in an address, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, name = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if name:
            assert name in map(anchor, headings(target)), link


def test_contents_of_the_guide_name_all_parts() -> None:
    guide = ROOT / "docs" / "guide.md"
    contents = re.findall(r"(?m)^- \[.+\]\(#(.+)\)$", guide.read_text("utf-8"))
    assert contents == [anchor(each) for each in headings(guide, "##")]
