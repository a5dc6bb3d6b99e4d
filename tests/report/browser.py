"""Chromium, for what a page looks like; it needs no network and keeps nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str:
    """The browser's program; skips with the reason where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is on the PATH")
    return found


def chromium(profile: Path, page: Path, *flags: str) -> str:
    """Have the browser open a page and end; what it wrote to standard output."""
    own = ["--no-sandbox"] if os.geteuid() == 0 else []
    ended = subprocess.run(
        [
            browser(),
            *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", *own),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", f"--user-data-dir={profile}", *flags, page.resolve().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def screenshot(
    page: Path, picture: Path, *, width: int, height: int = 900, dark: bool = False
) -> None:
    """Draw the first screen, or more of a page, as wide as asked for.

    A window has a least width, so a narrow page stands in a frame.
    """
    folder = picture.parent / f"{picture.stem}-browser"
    folder.mkdir(parents=True)
    frame = folder / "frame.html"
    frame.write_text(
        f"<!doctype html><style>body{{margin:0}}iframe{{border:0;display:block}}</style>"
        f'<iframe src="{page.resolve().as_uri()}" width="{width}" height="{height}"></iframe>'
    )
    chromium(
        folder / "profile",
        frame if width < 600 else page,
        f"--window-size={max(width, 600)},{height}",
        f"--screenshot={picture.resolve()}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    )
    shutil.rmtree(folder)
