"""Notebooks in a real JupyterLab in headless Chromium: all cells run, a slider changes a picture.

JupyterLab and Chromium write only to the test's own folder. Chromium and its driver must be on the
PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from cf_utils.core import files

pytestmark = pytest.mark.browser
LIMIT = 300  # seconds for one test
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1300,1000",
]
LAB_SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {
        "windowingMode": "none"  # puts every cell into the page
    },
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}
KERNEL = {  # the server's own Python
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
}
# nbval runs notebook 01 in full; here only the page is tested, so searches are short
QUICK_01 = {
    "steps": 20,
    "cem_steps": 10,
    "cem_tries": 2,
    "n_ablation": 10,
    "n_zero": 20,
}
SLIDER_CELL = """def explore(step=3):
    plt.figure(figsize=(2, 2))
    plt.bar(range(4), [i <= step for i in range(4)])
    plt.show()

explore()
knobs.interact(explore, step=ipywidgets.IntSlider(3, 0, 3, continuous_update=False))"""


def make_small_notebook(root: Path) -> Path:
    """Write a notebook with one slider and cells after it, built like those of the project."""
    setup = "import ipywidgets\nimport matplotlib.pyplot as plt\n\nfrom cf_utils.viz import knobs"
    cells = [
        new_markdown_cell("# small"),
        new_code_cell(setup),
        new_code_cell(SLIDER_CELL, metadata={"tags": ["slider"]}),
        *[new_code_cell(f"{i}") for i in range(20)],
    ]
    path = root / "small.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def copy_notebook(root: Path, name: str, parameters: dict) -> Path:
    """Copy notebooks/<name> without outputs; add a cell with `parameters`, as papermill does."""
    shutil.copytree(files.ROOT / "notebooks" / "profiles", root / "profiles")
    notebook = nbformat.read(files.ROOT / "notebooks" / name, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    at = next(i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(
        at + 1, new_code_cell("\n".join(f"{k} = {v!r}" for k, v in parameters.items()))
    )
    notebook.metadata.update(KERNEL)
    nbformat.write(notebook, root / name)
    return root / name


def find_slider_cell(path: Path) -> int:
    """Return the position, among all cells, of the last one tagged `slider`."""
    tagged = [
        i
        for i, c in enumerate(nbformat.read(path, as_version=4).cells)
        if "slider" in c.metadata.get("tags", [])
    ]
    assert tagged, f"{path.name}: no cell is tagged 'slider'"
    return tagged[-1]


# ---------------------------------------------------------------- JupyterLab and Chromium


@contextlib.contextmanager
def start_server(home: Path, notebooks: Path) -> Iterator[str]:
    """Start JupyterLab on a free local port, without the user's settings; yield its address."""
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "MPLCONFIGDIR": "matplotlib",
        "CF_RESULTS_ROOT": "results",
    }
    # variables of a runner or of another server, which a student does not have
    foreign = ("CF_", "JUPYTER", "JPY_", "XDG_", "MPLBACKEND")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= {
        "HOME": str(home),
        "CF_CLAIMS": "record",
        **{k: str(home / v) for k, v in folders.items()},
    }
    for name, content in LAB_SETTINGS.items():
        files.write_json(home / "settings" / name, content)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--notebook-dir={notebooks}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--LabApp.news_url=",
    ]
    address = f"http://127.0.0.1:{port}"
    with (
        open(home / "lab.log", "w") as log,
        subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log) as server,
    ):
        try:
            wait(
                lambda: server.poll() is not None or responds(f"{address}/api/status"),
                time.monotonic() + 90,
                "JupyterLab",
            )
            assert server.poll() is None, (
                f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}"
            )
            yield address
        finally:
            end_kernels(address)
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


def end_kernels(address: str) -> None:
    """End all kernels of a server; otherwise they would outlive it."""
    with contextlib.suppress(OSError):
        for kernel in json.load(urllib.request.urlopen(f"{address}/api/kernels", timeout=5)):
            url = f"{address}/api/kernels/{kernel['id']}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10)


def responds(url: str) -> bool:
    """Return whether a server answers with status 200."""
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def start_browser(home: Path) -> Iterator[webdriver.Chrome]:
    """Start headless Chromium with an empty profile."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, (
        "no chromium or no chromedriver on the PATH; skip this test with -m 'not browser'"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={home / 'chromium'}"]:
        options.add_argument(flag)
    page = webdriver.Chrome(
        options, webdriver.ChromeService(driver, log_output=str(home / "chromedriver.log"))
    )
    try:
        page.set_page_load_timeout(60)
        yield page
    finally:
        page.quit()


def wait(done: Callable[[], object], until: float, what: str, every: float = 0.25):
    """Call `done` until its value is true, and return the value; TimeoutError after `until`.

    Elements that the page replaces meanwhile are looked up again.
    """
    began, seen = time.monotonic(), None
    while time.monotonic() < until:
        with contextlib.suppress(StaleElementReferenceException):
            if seen := done():
                return seen
        time.sleep(every)
    raise TimeoutError(f"waited {time.monotonic() - began:.0f} s for {what}")


# ---------------------------------------------------------------- a notebook in the page


@dataclass
class Lab:
    """A notebook that is open in JupyterLab, and the time by which the test must end."""

    page: webdriver.Chrome
    cell: int  # position of the slider's cell
    until: float

    def cells(self) -> list:
        return self.page.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")

    def open(self, address: str, path: Path) -> None:
        self.page.get(f"{address}/lab/tree/{path.name}")
        n = len(nbformat.read(path, as_version=4).cells)
        wait(
            lambda: len(self.cells()) == n,
            min(self.until, time.monotonic() + 90),
            f"{n} cells of {path.name} in the page",
        )
        wait(self.idle, min(self.until, time.monotonic() + 60), "the kernel to start")

    def run_all(self) -> None:
        """Run all cells from the Run menu, as a student does."""
        self.page.find_element(
            By.XPATH, "//li[contains(@class, 'lm-MenuBar-item')][.//div[text()='Run']]"
        ).click()
        find = (By.CSS_SELECTOR, ".lm-Menu li[data-command='runmenu:run-all']")
        wait(
            lambda: self.page.find_elements(*find),
            min(self.until, time.monotonic() + 10),
            "the Run menu to open",
        )
        self.page.find_element(*find).click()
        try:
            wait(self.finished, self.until, "all cells to run")
        except TimeoutError as e:
            raise TimeoutError(f"{e}; prompts: {' '.join(self.prompts())}") from None

    def idle(self) -> bool:
        name = self.page.find_elements(By.CSS_SELECTOR, ".jp-Toolbar-kernelName")
        resting = self.page.find_elements(
            By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']"
        )
        return bool(resting and name) and "No Kernel" not in name[0].text

    def finished(self) -> bool:
        """Return whether all cells have run; raise AssertionError if a cell failed."""
        # prompts first: the last cell may fail between the two checks
        done = self.idle() and all(p.strip(" []:").isdigit() for p in self.prompts())
        stderr = self.texts(".jp-Notebook [data-mime-type='application/vnd.jupyter.stderr']")
        marks = ("Traceback (most recent call last)", "Cell In[")  # of errors; stderr has warnings
        errors = [text for text in stderr if any(mark in text for mark in marks)]
        assert not errors, f"a cell failed:\n{errors[0][-3000:]}"
        return done

    def prompts(self) -> list[str]:
        return self.texts(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt")

    def texts(self, selector: str) -> list[str]:
        return self.page.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def pictures(self) -> list[str]:
        """Return the sources of the images that the slider draws."""
        return self.page.execute_script(
            "return [...arguments[0].querySelectorAll('.widget-output img')].map(e => e.src)",
            self.cells()[self.cell],
        )

    def value(self) -> float:
        handle = self.cells()[self.cell].find_element(By.CSS_SELECTOR, ".noUi-handle")
        return float(handle.get_attribute("aria-valuenow"))

    def drag(self, share: float) -> None:
        """Drag the slider's handle by `share` of the track, towards its middle."""
        cell = self.cells()[self.cell]
        handle, track = (
            cell.find_element(By.CSS_SELECTOR, f".noUi-{part}") for part in ("handle", "base")
        )
        self.page.execute_script("arguments[0].scrollIntoView({block: 'center'})", track)
        time.sleep(0.5)  # the page scrolls smoothly; a press meanwhile would miss
        middle = track.rect["x"] + track.rect["width"] / 2
        way = 1 if handle.rect["x"] + handle.rect["width"] / 2 < middle else -1
        steps = ActionChains(self.page).click_and_hold(handle)
        for _ in range(4):  # several moves, like a hand's
            steps = steps.move_by_offset(round(way * share * track.rect["width"] / 4), 0)
        steps.release().perform()


@contextlib.contextmanager
def open_in_lab(tmp_path: Path, path: Path) -> Iterator[Lab]:
    """Open the notebook `path`; a failure leaves a screenshot and the server's log in tmp_path."""
    home = tmp_path / "home"
    home.mkdir()
    until = time.monotonic() + LIMIT
    with start_server(home, path.parent) as address, start_browser(home) as page:
        try:
            opened = Lab(page, find_slider_cell(path), until)
            opened.open(address, path)
            yield opened
        except BaseException as e:
            with contextlib.suppress(Exception):
                page.save_screenshot(str(tmp_path / "screenshot.png"))
            e.add_note(f"see {tmp_path / 'screenshot.png'} and {home / 'lab.log'}")
            raise


def move_there_and_back(opened: Lab) -> tuple[list[str], list[str], list[str]]:
    """Return the slider's pictures at first, after a move, and after the move back."""
    opened.run_all()
    wait(opened.pictures, min(opened.until, time.monotonic() + 20), "the slider's first picture")
    before, value = opened.pictures(), opened.value()
    opened.drag(0.4)
    wait(
        lambda: opened.value() != value,
        min(opened.until, time.monotonic() + 10),
        f"the slider to leave {value:g}",
    )
    changed = wait(
        lambda: (now := opened.pictures()) and now != before and now,
        min(opened.until, time.monotonic() + 20),
        f"another picture (the slider went from {value:g} to {opened.value():g})",
    )
    opened.drag(-0.4)
    wait(
        lambda: opened.value() == value,
        min(opened.until, time.monotonic() + 10),
        f"the slider to be back at {value:g}",
    )
    wait(
        lambda: opened.pictures() == before,
        min(opened.until, time.monotonic() + 20),
        "the first picture again",
    )
    return before, changed, opened.pictures()


def test_a_slider_changes_its_picture(tmp_path):
    (tmp_path / "work").mkdir()
    with open_in_lab(tmp_path, make_small_notebook(tmp_path / "work")) as opened:
        before, moved, back = move_there_and_back(opened)
    assert before == back != moved and len(moved) == len(before) > 0
    assert all(src.startswith("data:image/png") for src in moved)


def test_notebook_01_runs_in_jupyterlab_and_its_slider_changes_the_picture(tmp_path):
    (tmp_path / "work").mkdir()
    with open_in_lab(
        tmp_path, copy_notebook(tmp_path / "work", "01_gradual_mnist.ipynb", QUICK_01)
    ) as opened:
        before, moved, back = move_there_and_back(opened)
    assert before == back != moved and len(moved) == len(before) > 0
    assert all(src.startswith("data:image/png") for src in moved)


def test_a_failing_cell_is_reported_by_its_error(tmp_path):
    (tmp_path / "work").mkdir()
    path = make_small_notebook(tmp_path / "work")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = "1 / 0"
    nbformat.write(notebook, path)
    with (
        pytest.raises(AssertionError, match="ZeroDivisionError") as e,
        open_in_lab(tmp_path, path) as opened,
    ):
        opened.run_all()
    assert (
        tmp_path / "screenshot.png"
    ).stat().st_size > 0 and "screenshot.png" in e.value.__notes__[0]
