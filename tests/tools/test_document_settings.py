from __future__ import annotations

from pathlib import Path

from tools.document_settings import page
from vllm.config.vllm import all_settings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    command = f"python -m tools.document_settings > {DOCUMENT}"
    assert DOCUMENT.read_text() == page(), f"run: {command}"


def test_every_setting_is_on_the_page() -> None:
    text = page()

    assert all(f"`{setting.flag}`" in text for setting in all_settings())
