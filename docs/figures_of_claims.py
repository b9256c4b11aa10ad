"""What mkdocs asks while it builds the site: the figures of the claims, drawn from the records."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from bench.documents import claim_figures, with_figures

_FOLDER = "claims-figures"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures to the site's files."""
    for name, text in claim_figures().items():
        files.append(File.generated(config, f"{_FOLDER}/{name}.svg", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show them on the page of the claims."""
    return with_figures(markdown, _FOLDER) if page.file.src_uri == "claims.md" else markdown
