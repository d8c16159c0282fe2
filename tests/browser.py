"""A real browser for the tests of the page: Debian's chromium, without a window, driven by selenium."""

import base64
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-extensions", "--hide-scrollbars", "--no-first-run", "--no-default-browser-check",
    "--force-color-profile=srgb",
)  # fmt: skip

# A file as a visitor's: dropped on #drop or pasted; no driver can do either with a real one.
_HAND_OVER = """
    const [how, name, type, content] = arguments;
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type}));
    const options = {bubbles: true, cancelable: true};
    const event = how === "paste"
        ? new ClipboardEvent("paste", {...options, clipboardData: carried})
        : new DragEvent("drop", {...options, dataTransfer: carried});
    (how === "paste" ? document.body : document.getElementById("drop")).dispatchEvent(event);
"""
_SLIDE = """
    const [slider, value] = arguments;
    slider.value = value;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    slider.dispatchEvent(new Event("change", {bubbles: true}));
"""


class Browser:
    """The one page of a browser.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, *states: str, seconds: float = 20) -> None:
        """Load it and wait until it is in one of the states; "ready" if none is named."""
        self.driver.get(address)
        self.wait(*states or ("ready",), seconds=seconds)

    def wait(self, *states: str, seconds: float = 20) -> str:
        """Until the page is in one of the states, which is returned; "failed" is wrong if it is not among them."""
        return self.until(lambda: self._state(states), f"the page does not become {' or '.join(states)}", seconds)

    def until(self, condition: Any, what: str, seconds: float = 20) -> Any:
        """What `condition` returns, once that is true."""
        end = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < end, f"{what} within {seconds} s: {self.state!r}, {self.text('message')!r}"
            time.sleep(0.02)
        return result

    def _state(self, states: Sequence[str]) -> str | None:
        state = self.state
        assert state != "failed" or "failed" in states, self.text("message")
        return state if state in states else None

    @property
    def state(self) -> str:
        return self.run("return document.documentElement.dataset.state")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def element(self, name: str) -> Any:
        """By its id."""
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        """Of an element, shown or not."""
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def shows(self, name: str) -> bool:
        return self.element(name).is_displayed()

    def choose(self, path: Path) -> None:
        """A file, by the file dialog."""
        self.element("file").send_keys(str(path))

    def drop(self, path: Path, media_type: str = "image/png") -> None:
        self._hand_over("drop", path, media_type)

    def paste(self, path: Path, media_type: str = "image/png") -> None:
        self._hand_over("paste", path, media_type)

    def _hand_over(self, how: str, path: Path, media_type: str) -> None:
        self.run(_HAND_OVER, how, path.name, media_type, base64.b64encode(path.read_bytes()).decode())

    def press(self, key: str) -> None:
        """On what has the focus: a key by selenium's name, such as TAB."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def slide(self, name: str, value: float) -> None:
        """A range slider, as by hand."""
        self.run(_SLIDE, self.element(name), value)

    def select(self, name: str, value: str) -> None:
        """An option, by its value."""
        from selenium.webdriver.support.ui import Select

        Select(self.element(name)).select_by_value(value)

    def items(self, name: str) -> list[dict[str, str]]:
        """The `data-` attributes of a list's items, as text."""
        return self.run(
            "return [...document.getElementById(arguments[0]).children].map((li) => ({...li.dataset}))", name
        )

    def pixels(self, name: str = "stage") -> bytes:
        """A canvas, as RGBA."""
        script = (
            "const c = document.getElementById(arguments[0]);"
            "const bytes = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let text = ''; for (let i = 0; i < bytes.length; i += 32768)"
            " text += String.fromCharCode(...bytes.subarray(i, i + 32768)); return btoa(text);"
        )
        return base64.b64decode(self.run(script, name))

    def requests(self) -> list[str]:
        """Addresses of what the page has loaded and asked for."""
        return self.run("return performance.getEntriesByType('resource').map((each) => each.name)")

    def errors(self) -> list[str]:
        """What the console got since the last call at level SEVERE: violations of the Content-Security-Policy, too."""
        return [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]

    def resize(self, width: int, height: int, density: float = 1) -> None:
        """The page's area in CSS pixels, which may be smaller than any window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, **features: str) -> None:
        """Media features by name with underscores, such as prefers_color_scheme="dark"; the others as they were."""
        chosen = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what is in view."""
        size = self.run("const page = document.documentElement; return [page.clientWidth, page.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def start_browser(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A browser with a fresh profile, gone at the end whatever happens; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    binary, driver_file = (_program(name) for name in ("chromium", "chromedriver"))
    with TemporaryDirectory(prefix="vankit-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        # A session of its own: what is left of the browser is known by its group, and its files by the folder.
        environment = {**os.environ, "TMPDIR": profile}
        service = webdriver.ChromeService(driver_file, env=environment, popen_kw={"start_new_session": True})
        try:
            driver = webdriver.Chrome(options, service)
            driver.set_page_load_timeout(30)
            driver.set_script_timeout(30)
            browser = Browser(driver)
            browser.resize(width, height)
            yield browser
        finally:
            _end(service)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: on Debian, apt-get install chromium chromium-driver")
    return path


def _end(service: Any) -> None:
    process = getattr(service, "process", None)
    if process is None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
