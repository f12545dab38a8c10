"""What mkdocs calls while it builds the site; `mkdocs.yml` names this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.docs_site import markdown, navigation, pages

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the entries of the menu that stand for a folder."""
    config.nav = navigation.expand(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that follow from the code."""
    from mkdocs.structure.files import File

    for uri, text in pages.generate().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in pieces of other files; link names of the API and files outside `docs`."""
    return markdown.prepare(text, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers show by themselves."""
    return markdown.formulas(html)
