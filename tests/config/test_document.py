from __future__ import annotations

from pathlib import Path

from vllm.config.document import page
from vllm.config.vllm import all_settings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert DOCUMENT.read_text() == page(), "run: python -m vllm.config.document > " + str(DOCUMENT)


def test_every_setting_is_on_the_page() -> None:
    text = page()

    assert all(f"`{setting.flag}`" in text for setting in all_settings())
