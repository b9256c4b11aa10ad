"""A headless Chromium for tests of pages, without a driver: it prints a page's final text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
#: a frame of a window's size, because a headless window itself is never narrower than 500 pixels
_FRAME = """<!doctype html><iframe id="page" style="border: 0; width: {width}px; height: {height}px"
srcdoc="{page}"></iframe><pre id="answer"></pre><script>
document.getElementById("page").addEventListener("load", async (event) => {{
  const answer = await event.target.contentWindow.eval({question});
  document.getElementById("answer").textContent = JSON.stringify(answer);
}});</script>"""


def framed(page: str, question: str, width: int, height: int) -> str:
    """A document that shows `page` in a frame and writes down what `question` is in it."""
    quoted = json.dumps(question).replace("</", "<\\/")
    return _FRAME.format(width=width, height=height, page=html.escape(page), question=quoted)


def ask(page: Path, question: str, width: int, height: int, folder: Path) -> Any:
    """The value of the script `question` in `page`, shown `width` x `height` pixels large."""
    asked = folder / f"asked-{width}.html"
    asked.write_text(framed(page.read_text(encoding="utf-8"), question, width, height))
    text = subprocess.run(
        [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width + 40},{height + 40}"),
            *("--virtual-time-budget=8000", "--dump-dom", asked.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    ).stdout
    (found,) = re.findall(r'<pre id="answer">(.*?)</pre>', text, re.DOTALL)
    return json.loads(html.unescape(found))
