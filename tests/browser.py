"""Headless Chromium, which runs the scripts of a page."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def after_script(page: str, script: str, folder: Path) -> str:
    """The document of a page once its own scripts and this one have run; skips the test without a browser."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: install {NAMES[0]}")
    path = folder / "driven.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    return subprocess.run([browser, *options, path.as_uri()], capture_output=True, text=True, check=True).stdout
