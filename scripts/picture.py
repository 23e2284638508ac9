"""A picture of a page of esrl-report, for the documentation: PAGE.html OUT.png [TITLE…]

With titles, of the plots that have them, side by side; otherwise of the head of the page. Needs
playwright and Chromium.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/google-chrome")

ONLY = """titles => {
  const found = titles.map(title => [...document.querySelectorAll("figure")].find(
    figure => figure.querySelector("figcaption").textContent === title));
  if (found.includes(undefined)) return false;
  const main = document.querySelector("main"), box = document.createElement("div");
  box.className = "figures";
  box.id = "chosen";
  main.replaceChildren(box);
  box.append(...found);
  window.dispatchEvent(new Event("resize"));
  return true;
}"""


def take(page: Page, out: Path, titles: list[str], height: int) -> None:
    """Save the picture of an open page."""
    page.wait_for_selector("html[data-drawn]", state="attached")
    page.wait_for_timeout(500)
    if not titles:
        width = page.viewport_size["width"]
        clip = {"x": 0, "y": 0, "width": width, "height": height}
        page.screenshot(path=out, full_page=True, clip=clip)
        return
    if not page.evaluate(ONLY, titles):
        raise SystemExit(f"error: the page has no plot with one of these titles: {titles}")
    page.wait_for_timeout(800)
    page.locator("#chosen").screenshot(path=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("titles", nargs="*", help="of plots")
    parser.add_argument("--width", type=int, default=1000, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1000, help="of the picture, without titles")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    browser = next((path for path in CHROMIUM if Path(path).exists()), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        context = p.chromium.launch_persistent_context(
            folder,
            executable_path=browser,
            args=QUIET.split(),
            offline=True,
            viewport={"width": args.width, "height": 900},
            color_scheme="dark" if args.dark else "light",
        )
        context.set_default_timeout(300_000)  # also on a busy machine
        page = context.new_page()
        page.on("console", lambda message: print("console:", message.text))
        page.on("pageerror", lambda error: print("error:", error))
        page.goto(args.page.resolve().as_uri())
        take(page, args.out, args.titles, args.height)
        context.close()


if __name__ == "__main__":
    main()
