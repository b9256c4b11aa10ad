"""What is committed under reports/: small, and what the records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from bench.environment import ROOT
from bench.report.published import REPORTS, published
from bench.report.rendered import render_all

#: GitHub shows them in the page
_LARGEST_FIGURE = 150 * 1024


def test_the_summary_is_what_the_records_say() -> None:
    """After a change of records: `python -m bench.report.published`."""
    text, figures = published()
    assert (REPORTS / "README.md").read_text(encoding="utf-8") == text
    files = {path.name for path in (REPORTS / "figures").iterdir()}
    assert files == set(figures)
    assert len(files) <= 8
    assert all(path.stat().st_size <= _LARGEST_FIGURE for path in (REPORTS / "figures").iterdir())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "reports/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.slow
def test_every_run_is_rendered_with_the_claims_figures(tmp_path: Path) -> None:
    """The smallest run and the claims; `make report` does the same to all."""
    (tmp_path / "reports" / "release").mkdir(parents=True)
    for name in ("release/selftest", "release/verify"):
        (tmp_path / "reports" / name).symlink_to(REPORTS / name)
    pages = render_all(tmp_path / "reports", tmp_path / "html")
    assert [page.parent.name for page in pages] == ["selftest", "verify"]
    claims = pages[1].read_text(encoding="utf-8")
    assert claims.count("data:image/webp") >= 5
    index = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="verify/index.html"' in index
    with pytest.raises(ValueError, match="no run directories"):
        render_all(tmp_path / "html" / "selftest", tmp_path / "again")
