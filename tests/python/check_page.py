"""Looks at HTML reports in headless Chromium: check_page.py HTML JSON [HTML JSON]...

The browser is $CHROMIUM, or chromium, chromium-browser or google-chrome on the PATH; without one the check is
skipped with a message. It is driven through its pipe, so no other package is needed.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

WIDTHS = (420, 1280)

# What is not fully seen: beyond the page's sides, or cut off by its own box. What scrolls by itself is seen.
CUT_OFF = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const details of document.querySelectorAll('details')) details.open = true;
  if (document.documentElement.scrollWidth > width) found.push('the page is wider than the window');
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || ['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    const scrolls = element.closest('.scroll');
    if (!scrolls && (box.left < -0.5 || box.right > width + 0.5))
      found.push(`beyond the side: ${node.textContent.trim().slice(0, 60)}`);
    for (let at = element; at && at !== scrolls && at !== document.body; at = at.parentElement) {
      const style = getComputedStyle(at), own = at.getBoundingClientRect();
      if (style.overflowX === 'hidden' && (box.right > own.right + 1 || box.left < own.left - 1))
        found.push(`cut off: ${node.textContent.trim().slice(0, 60)}`);
    }
  }
  return found;
})()"""

# Words that lie over each other within one picture.
OVERLAPS = """(() => {
  const found = [];
  for (const plot of document.querySelectorAll('.plot, .layers, .axis')) {
    const words = [...plot.querySelectorAll('span, .label')].filter((e) => e.textContent.trim() && !e.children.length);
    const boxes = words.map((e) => { const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect(); });
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        found.push(`${words[i].textContent} over ${words[j].textContent}`);
    }
  }
  return found;
})()"""

# Texts whose contrast with what is behind them is below 4.5 to 1.
FAINT = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parse(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const found = new Set();
  for (const element of document.querySelectorAll('h1, h2, p, td, th, dt, dd, span, b, code, pre, summary')) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    let behind = element;
    while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind ?? document.body).backgroundColor)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.add(`${element.tagName}.${element.className}: ${contrast.toFixed(2)}`);
  }
  return [...found];
})()"""

# Each heading of each table that can be sorted, clicked twice: the rows are in order, and none is lost.
SORTS = """(() => {
  const found = [];
  let tables = 0;
  for (const table of document.querySelectorAll('table.sortable')) {
    tables += 1;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const cells = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
      const before = cells();
      for (const sign of [1, -1]) {
        head.click();
        const after = cells();
        if ([...before].sort().join() !== [...after].sort().join()) found.push(`${head.textContent}: rows were lost`);
        const scale = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
        const numbers = after.map((t) => parseFloat(t) * (scale[(/^-?[\\d.e+-]+([kMGT])/.exec(t) ?? [])[1]] ?? 1));
        if (numbers.every((n) => !Number.isNaN(n)) && numbers.some((n, at) => at && sign * (n - numbers[at - 1]) < 0))
          found.push(`${head.textContent}: ${after}`);
      }
    });
  }
  return { found, tables };
})()"""


class Browser:
    """Chromium over its DevTools pipe."""

    def __init__(self, program: str, profile: str) -> None:
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()

        def ends() -> None:
            # The browser reads from 3 and writes to 4; both ends may have these numbers now.
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [program, "--headless=new" if "shell" not in program else "--headless", "--remote-debugging-pipe"]
            + ["--no-sandbox", "--no-zygote", "--disable-gpu", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=ends,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._read = b""
        self.events: list[dict] = []
        self._session: str | None = None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict:
        while b"\0" not in self._read:
            more = os.read(self._from, 1 << 16)
            if not more:
                sys.exit("the browser ended by itself")
            self._read += more
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params: object) -> dict:
        """The result of a command; what the browser tells meanwhile is kept in `events`."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != number:
            self.events.append(message)
        if "error" in message:
            sys.exit(f"{method}: {message['error']}")
        return message["result"]

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            sys.exit(f"the check itself failed: {result['exceptionDetails']}")
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Loads a page and waits for it."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._message())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def numbers(report: dict) -> list[str]:
    """Some numbers of a report as the page writes them."""
    size = report["size"]
    found = [percent(report["budget"]["got"]), percent(size["parameters_after"] / size["parameters_before"])]
    if size["bytes_after"] is not None:
        found.append(percent(size["bytes_after"] / size["bytes_before"]))
    for output in (report["held_out"] or {"outputs": []})["outputs"]:
        found += [percent(output["agreement"])] if output["agreement"] is not None else []
        found += [f"{output['cosine']:.4f}"] if output["cosine"] is not None else []
    for group in report["groups"]:
        found.append(f"{len(group['kept'])} of {group['units']}" if group["kept"] else f"removed ({group['units']})")
    for channels in report["channels"]:
        found.append(f"{channels['after']} of {channels['before']} for ")
    return found


def check(browser: Browser, page: pathlib.Path, reports: list[dict]) -> list[str]:
    """What is wrong with a page."""
    wrong = []
    for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme_of = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=scheme_of)
        browser.open(page.as_uri())
        at = f"{page.name}, {width} pixels, {scheme}"
        for what, script in (("cut off", CUT_OFF), ("overlap", OVERLAPS), ("faint", FAINT)):
            found = browser.evaluate(script)
            wrong += [f"{at}: {what}: {one}" for one in found]
        sorted_ = browser.evaluate(SORTS)
        wrong += [f"{at}: not sorted: {one}" for one in sorted_["found"]]
        if not sorted_["tables"]:
            wrong.append(f"{at}: no table can be sorted")
        for event in browser.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or (
                method == "Log.entryAdded" and params["entry"]["level"] == "error"
            ):
                wrong.append(f"{at}: {json.dumps(params)[:300]}")
            if method == "Network.requestWillBeSent" and params["request"]["url"] != page.as_uri():
                wrong.append(f"{at}: asks for {params['request']['url']}")
    text = browser.evaluate("document.body.innerText.replace(/\\s+/g, ' ')")
    for number in itertools.chain.from_iterable(map(numbers, reports)):
        if number not in text:
            wrong.append(f"{page.name}: '{number}' of the JSON is not in the page")
    return wrong


def main() -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        print("skipped: there is no Chromium (install one, or name it in CHROMIUM)")
        return
    wrong = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for page, report in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
                reports = json.loads(pathlib.Path(report).read_text(encoding="utf-8"))
                reports = reports if isinstance(reports, list) else [reports]
                wrong += check(browser, pathlib.Path(page).resolve(), reports)
        finally:
            browser.close()
    print("\n".join(wrong) or f"{len(sys.argv[1:]) // 2} pages looked at")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
