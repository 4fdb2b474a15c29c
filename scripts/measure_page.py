"""Open report.html pages in a headless Chromium: their size, how soon they are painted and loaded, what they fetch.

    python scripts/measure_page.py out/demo/report.html [--pictures out/pictures]

Prints medians of five loads. With --pictures, writes the whole page as a picture in light and dark mode and as it is
printed, to look at.
"""

import argparse
import os
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DRAWN = "html[data-drawn]"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"  # then figures are drawn
NOW = "performance.now()"  # asked once all is drawn: a few milliseconds late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, help="report.html files")
    parser.add_argument("--repeats", type=int, default=5, help="loads of each page")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of each page")
    arguments = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise SystemExit("no chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for page in arguments.pages:
            measure(browser, page, arguments.repeats)
            if arguments.pictures:
                take_pictures(browser, page, arguments.pictures)
        browser.close()


def measure(browser: Browser, path: Path, repeats: int) -> None:
    painted, loaded, drawn, requests = [], [], [], []
    for _ in range(repeats):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on(
            "request", lambda r: None if r.url.split(":")[0] in ("file", "data", "blob") else requests.append(r.url)
        )
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(DRAWN)
        painted.append(page.evaluate(PAINTED))
        drawn.append(page.evaluate(NOW))
        loaded.append(page.evaluate(LOADED))
        page.close()
    n_fetched = sum(url.split(":")[0] not in ("file", "data", "blob") for url in requests)
    print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB, painted after {_seconds(painted)}, loaded after "
        f"{_seconds(loaded)}, all drawn after {_seconds(drawn)}, {n_fetched} network requests"
    )


def _seconds(milliseconds: list[float]) -> str:
    return f"{statistics.median(milliseconds) / 1e3:.2f} s"


def take_pictures(browser: Browser, path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = path.resolve().parent.name
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(DRAWN)
        page.screenshot(path=folder / f"{stem}-{scheme}.png", full_page=True)
        if scheme == "light":
            page.pdf(path=folder / f"{stem}.pdf", format="A4", print_background=True)
        context.close()


if __name__ == "__main__":
    main()
