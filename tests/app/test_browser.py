"""The page in a real browser: Debian's package chromium, headless. Skipped where it is not installed."""

import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from tests.app.folders import hostile, photo, save_model
from tests.app.serving import served

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    models = [save_model(folder / task, task) for task in ("panoptic", "semantic")]
    (folder / "temporary").mkdir()
    for seed in range(2):
        photo(folder / f"photo{seed}.png", (120, 160), seed)
    with served(models, folder / "temporary", upload_megabytes=1) as (address, predictor):
        yield folder, address, predictor


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(server, browser):
    """→ a page, after which nothing may have been asked of another host, nor have failed in the page's scripts."""
    contexts, foreign, errors = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda r: r.url.startswith((server[1], "data:", "blob:")) or foreign.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server[1])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not foreign
    assert not errors


def upload(page, *files) -> None:
    page.set_input_files("#photos input[type=file]", [str(file) for file in files])
    page.wait_for_selector(".eomt-view, .eomt-message")


def redrawn(page, act) -> None:
    """Do something, and wait until other pictures are there."""
    state = "[...document.querySelectorAll('.eomt-view img, .eomt-view .eomt-message')].map(e => e.src || e.innerText)"
    before = page.evaluate(f"{state}.join()")
    act()
    page.wait_for_function(f"before => {state}.join() !== before", arg=before)
    page.wait_for_function("() => [...document.querySelectorAll('.eomt-view img')].every(image => image.complete)")


def slide(page, name: str, value: float) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def center(page) -> tuple[float, float]:
    """A pixel of a segment, in the window: the middle one of all that the map has, row by row."""
    return page.evaluate(
        """() => {
            const ids = document.querySelector('.eomt-ids'), canvas = document.createElement('canvas');
            const [w, h] = [canvas.width, canvas.height] = [ids.naturalWidth, ids.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(ids, 0, 0);
            const map = context.getImageData(0, 0, w, h).data;
            const found = [...Array(w * h).keys()].filter((i) => map[4 * i]);
            const i = found[found.length >> 1], box = document.querySelector('.eomt-overlay').getBoundingClientRect();
            return [box.left + ((i % w) + 0.5) * box.width / w, box.top + ((i / w | 0) + 0.5) * box.height / h];
        }"""
    )


def test_photos_thresholds_views_and_files(server, open_page):
    folder, _, predictor = server
    page, runs = open_page(viewport={"width": 1200, "height": 900}), predictor.runs
    upload(page, folder / "photo0.png", folder / "photo1.png")
    assert page.locator(".eomt-view").count() == 1
    redrawn(page, lambda: slide(page, "score", 1))
    assert "Nothing scores above the threshold" in page.locator(".eomt-view").inner_text()
    redrawn(page, lambda: slide(page, "score", 0.5))
    assert page.locator(".eomt-legend li").all_inner_texts()[0] == "dog × 2"
    page.mouse.move(*center(page))
    assert re.fullmatch(r"(dog|sea & sand) [01]\.\d\d", page.locator(".eomt-name").inner_text())
    box = page.locator(".eomt-overlay").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(160 / 120, rel=0.01)  # as it was taken
    page.locator(".eomt-legend li").first.hover()
    assert page.locator(".eomt-veil").get_attribute("data-numbers")
    for view in ("instance", "semantic", "confidence"):
        redrawn(page, lambda view=view: page.locator("#view label", has_text=view).click())
        assert page.locator(".eomt-view").get_attribute("data-view") == view
    assert not page.locator("#score").is_visible()  # it does not act here
    redrawn(page, lambda: page.locator("#view label", has_text="semantic").click())
    assert predictor.runs == runs + 1  # for all of this
    page.locator("#make").click()
    page.wait_for_selector("#made a[download]")
    files = {}
    for link in page.locator("#made a[download]").all():
        with page.expect_download() as download:
            link.click()
        files[download.value.suggested_filename] = download.value.path()
    assert sorted(files) == ["photo0.json", "photo0.overlay.jpg", "photo0.png"]
    categories = {category["id"] for category in json.loads(files["photo0.json"].read_text())["categories"]}
    labels = np.asarray(Image.open(files["photo0.png"]))
    assert labels.shape == (120, 160)
    assert {*np.unique(labels).tolist()} <= categories
    redrawn(page, lambda: (page.locator("#photo input").click(), page.get_by_role("option", name="photo1.png").click()))
    assert predictor.runs == runs + 2
    assert not page.locator("#made").is_visible()  # those were another photo's


def test_two_models_and_a_folder(server, open_page, tmp_path):
    page = open_page()
    photo(tmp_path / "b.png", seed=5)
    photo(tmp_path / "a.png", seed=6)
    (tmp_path / "notes.txt").write_text("no photo")
    with page.expect_file_chooser() as chooser:
        page.locator("#folder").click()
    chooser.value.set_files(str(tmp_path))
    page.wait_for_selector(".eomt-view")
    page.locator("#photo input").click()
    assert sorted(text.split()[-1] for text in page.get_by_role("option").all_inner_texts()) == ["a.png", "b.png"]
    page.keyboard.press("Escape")
    page.locator("#other input").click()
    redrawn(page, lambda: page.get_by_role("option", name="semantic, PyTorch").click())
    assert page.locator("figcaption").all_inner_texts() == ["panoptic, PyTorch", "semantic, PyTorch"]
    assert "has no panoptic view; choose from semantic, confidence" in page.locator(".eomt-message").inner_text()
    redrawn(page, lambda: page.locator("#view label", has_text="semantic").click())
    left, right = (view.bounding_box() for view in page.locator(".eomt-view").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_unusable_files(server, open_page, tmp_path):
    page = open_page()
    for said, file in hostile(tmp_path).items():
        upload(page, file)
        page.get_by_text(re.compile(re.escape(said))).wait_for()
        assert page.locator(".eomt-view").count() == 0
        page.get_by_label("Clear").first.click()
        page.wait_for_selector(".eomt-empty")
    (tmp_path / "large.bmp").write_bytes(b"BM" + bytes(2 * 2**20))
    page.set_input_files("#photos input[type=file]", str(tmp_path / "large.bmp"))
    page.get_by_text(re.compile(r"exceed the maximum allowed size of 1")).first.wait_for()


def test_a_phone(server, open_page):
    page = open_page(**PHONE)
    upload(page, server[0] / "photo0.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    picture, settings = (page.locator(f"#{part}").bounding_box() for part in ("result", "settings"))
    assert picture["y"] + picture["height"] <= settings["y"]  # what one came for is above the sliders
    page.locator(".eomt-overlay").scroll_into_view_if_needed()
    page.touchscreen.tap(*center(page))
    assert re.search(r" [01]\.\d\d$", page.locator(".eomt-name").inner_text())
    name, overlay = (page.locator(part).bounding_box() for part in (".eomt-name", ".eomt-overlay"))
    assert overlay["x"] <= name["x"]
    assert name["x"] + name["width"] <= overlay["x"] + overlay["width"] + 1


def test_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert "eomt predict PHOTOS --model MODEL --output FOLDER" in page.locator("noscript").inner_text()
