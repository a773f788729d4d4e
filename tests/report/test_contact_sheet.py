"""The contact sheet, looked at by a browser: it loads without a complaint, every picture shows, no text is cut off."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autosegloss.cli import main
from autosegloss.report.pages.elements import class_colour

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the sheet with")

EVIL = '<b>&"it\'s"<img src=x onerror=alert(1)>'
LONG = "a folder/" + "name_without_any_break_" * 6
SIZES = {"plain": (60, 90), EVIL: (40, 30), LONG: (30, 400), "ignored": (20, 20)}
METRICS = "miou,gacc,class_mean(total(pred & target) / total(target), where=total(target), background=False)"
CLASSES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of 24 classes, some pixels ignored, predictions with errors, and pictures; and their sheet."""
    root, rng = tmp_path_factory.mktemp("sheet"), np.random.default_rng(3)
    for name, (height, width) in SIZES.items():
        row, column = np.mgrid[:height, :width]
        target = (row * 6 // height * 4 + column * 4 // width) % CLASSES
        pred = np.where(rng.random((height, width)) < 0.2, rng.integers(0, CLASSES, (height, width)), target)
        target[:, : width // 5] = 255
        if name == "ignored":
            target[:] = 255
        for kind, pixels in (("target", target), ("pred", pred), ("images", rng.integers(0, 255, (height, width, 3)))):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    sheet(root)
    return root


def sheet(root: Path, *options: str) -> str:
    path = root / "sheet.html"
    folders = ["--pred", str(root / "pred"), "--target", str(root / "target"), "--images", str(root / "images")]
    arguments = ["--num-classes", str(CLASSES), "--metric", METRICS, "--worst", "2", "--sheet", str(path), *options]
    assert main(["evaluate", *folders, *arguments]) == 0
    return path.read_text()


class Page(HTMLParser):
    """Tags and texts of a page, without a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "h3":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        if self.headings and self.tags[-1][0] == "h3":
            self.headings[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pixels(image: dict[str, str | None]) -> np.ndarray:
    data = base64.b64decode((image["src"] or "").split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)))


# Its text -------------------------------------------------------------------------------------------------------------


def test_each_image_is_shown_once_with_four_pictures_that_say_what_they_are(folder: Path) -> None:
    page = Page((folder / "sheet.html").read_text())
    assert sorted(heading.strip() for heading in page.headings) == sorted({*SIZES} - {"ignored"})
    images = page.all("img")
    assert len(images) == 4 * len(page.headings)
    assert all(image["alt"] for image in images)
    for image in images:
        assert (image["src"] or "").startswith("data:image/")
        assert pixels(image).shape[:2] == (int(image["height"] or 0), int(image["width"] or 0))


def test_every_link_leads_to_a_list_that_has_images(folder: Path) -> None:
    page = Page((folder / "sheet.html").read_text())
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] or "" for attributes in page.all("a")]
    assert links
    assert all(link.startswith("#") and link[1:] in anchors for link in links)
    options = {attributes["value"] for attributes in page.all("option")}
    assert {link[1:] for link in links} | {"worst"} == options
    assert {"worst-0", "worst-0-3", "worst-1", "worst-2-23"} <= options
    assert not {"worst-1-0", "worst-2-0"} & options  # no classes; class 0 does not count


def test_the_page_asks_for_nothing_outside_and_runs_no_file_name(folder: Path) -> None:
    text = (folder / "sheet.html").read_text()
    assert "://" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "<b>&" not in text
    assert "<img src=x" not in text


def test_the_same_input_gives_the_same_page(folder: Path) -> None:
    assert sheet(folder) == sheet(folder)


def test_the_maps_show_labels_ignored_pixels_and_errors(folder: Path) -> None:
    images = {image["alt"]: image for image in Page((folder / "sheet.html").read_text()).all("img")}
    target, pred = (np.asarray(Image.open(folder / kind / "plain.png")) for kind in ("target", "pred"))
    label, told, errors = (
        pixels(next(image for alt, image in images.items() if alt and alt.startswith(start) and "plain" in alt))
        for start in ("label of", "prediction for", "error map of")
    )
    valid, wrong = target != 255, (target != 255) & (target != pred)
    for c in range(CLASSES):
        assert (label[target == c, :3] == class_colour(c)).all()
        assert (told[pred == c, :3] == class_colour(c)).all()
    hatch = {tuple(colour) for colour in label[~valid].tolist()}
    assert len(hatch) == 2
    assert hatch == {tuple(colour) for colour in errors[~valid].tolist()}
    assert not hatch & {(*class_colour(c), 255) for c in range(CLASSES)}
    assert {tuple(colour) for colour in errors[wrong].tolist()} == {(222, 62, 40, 255)}
    assert (errors[valid & ~wrong, 3] == 0).all()  # the page shows through
    share = f"{100 * wrong.sum() / valid.sum():.2f} % of the pixels are wrong"
    assert any(alt and "plain" in alt and share in alt for alt in images)


def test_a_single_wrong_pixel_of_a_large_map_stays_in_the_error_map(tmp_path: Path) -> None:
    target = np.zeros((30, 2500), np.uint8)
    pred = target.copy()
    pred[17, 1234] = 1
    for kind, labels in (("target", target), ("pred", pred)):
        (tmp_path / kind).mkdir()
        Image.fromarray(labels).save(tmp_path / kind / "x.png")
    folders = ["--pred", str(tmp_path / "pred"), "--target", str(tmp_path / "target")]
    options = ["--num-classes", "2", "--metric", "gacc", "--sheet", str(tmp_path / "sheet.html")]
    assert main(["evaluate", *folders, *options]) == 0
    errors = pixels(Page((tmp_path / "sheet.html").read_text()).all("img")[-1])
    assert errors.shape == (6, 500, 4)
    assert (errors[..., 3] > 0).sum() == 1


def test_a_picture_may_be_missing_where_that_is_allowed(folder: Path) -> None:
    picture = folder / "images/plain.png"
    data = picture.read_bytes()
    picture.unlink()
    try:
        shown = [image["alt"] for image in Page(sheet(folder, "--allow-missing")).all("img")]
    finally:
        picture.write_bytes(data)
        sheet(folder)
    assert "the image plain" not in shown
    assert len(shown) == 4 * 3 - 1


def test_a_picture_of_measurements_may_have_holes(folder: Path) -> None:
    picture = folder / "images/plain.png"
    data = picture.read_bytes()
    picture.unlink()
    values = np.linspace(-5, 5, 60 * 90, dtype=np.float32).reshape(60, 90)
    values[:, :10], values[:, 80:] = np.nan, np.inf
    Image.fromarray(values).save(picture.with_suffix(".tif"))
    try:
        images = {image["alt"]: image for image in Page(sheet(folder)).all("img")}
    finally:
        picture.with_suffix(".tif").unlink()
        picture.write_bytes(data)
        sheet(folder)
    shown = pixels(images["the image plain"])[..., 0]
    assert shown[0, 20] < 20
    assert shown[-1, 70] > 235


def test_the_colours_of_classes_differ() -> None:
    assert all(np.abs(np.subtract(class_colour(a), class_colour(b))).sum() > 40 for a, b in combinations(range(24), 2))
    assert len({class_colour(c) for c in range(256)}) > 250


# In a browser ---------------------------------------------------------------------------------------------------------

PROBE = """<!doctype html>
<meta charset="utf-8">
<body style="margin: 0">
<iframe style="border: 0; width: {width}px; height: 900px"></iframe>
<pre id="found"></pre>
<script>
const frame = document.querySelector("iframe");
frame.onload = async () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  const turned = () => new Promise((done) => view.addEventListener("hashchange", done, {{once: true}}));
  const scrolls = (node) => node && (view.getComputedStyle(node).overflowX === "auto" || scrolls(node.parentElement));
  const texts = [...page.querySelectorAll("body *")].filter((node) =>
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) &&
    !node.closest("script, select") && node.getClientRects().length);
  const outside = (node) => {{
    const range = page.createRange();
    range.selectNodeContents(node);
    const text = range.getBoundingClientRect(), box = page.documentElement.clientWidth;
    return text.right > box + 1 || text.left < -1;
  }};
  const look = () => ({{
    width: page.documentElement.scrollWidth,
    pictures: [...page.images].map((image) => image.naturalWidth),
    narrow: [...page.images].filter((image) => image.getClientRects().length && image.clientWidth < 100).length,
    cut: texts.filter((node) => node.scrollWidth > node.clientWidth + 1 && node.clientWidth ||
      outside(node) && !scrolls(node)).map((node) => node.textContent),
    shown: [...page.querySelectorAll("article")].filter((card) => !card.hidden).map((card) =>
      card.querySelector("h3").firstChild.data.trim()),
    current: page.querySelectorAll("[aria-current]").length,
    background: view.getComputedStyle(page.body).backgroundColor,
    color: view.getComputedStyle(page.body).color,
  }});
  const found = {{all: look()}};
  const select = page.querySelector("select");
  select.focus();
  found.focus = page.activeElement === select;
  select.value = "worst-0-3";
  let turn = turned();
  select.dispatchEvent(new view.Event("change"));
  await turn;
  found.one = look();
  page.querySelector("#large").click();
  found.large = look();
  turn = turned();
  view.location.hash = "worst";
  await turn;
  found.again = look();
  document.querySelector("#found").textContent = JSON.stringify(found);
}};
frame.src = "sheet.html";
</script>
"""


def chromium(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and what its console said."""
    assert CHROMIUM is not None
    command = f"""--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr
        --window-size=1400,1000 --virtual-time-budget=20000 --dump-dom --user-data-dir={profile}"""
    done = subprocess.run(
        [CHROMIUM, *command.split(), *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def looked_at(folder: Path, tmp_path: Path, width: int, dark: bool) -> dict:
    (folder / "probe.html").write_text(PROBE.format(width=width))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    text, said = chromium(folder / "probe.html", tmp_path / "profile", scheme)
    assert said == []
    found = re.search(r'<pre id="found">(.+?)</pre>', text, re.DOTALL)
    assert found, text[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(folder: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = looked_at(folder, tmp_path, width, dark)
    names = {*SIZES} - {"ignored"}
    for state in ("all", "one", "large", "again"):
        look = found[state]
        assert look["width"] <= width, state
        assert look["cut"] == [], state
        assert look["narrow"] == 0, state
        assert len(look["pictures"]) == 4 * len(names)
        assert all(look["pictures"])
    assert found["focus"]
    assert set(found["all"]["shown"]) == set(found["again"]["shown"]) == names
    assert len(found["one"]["shown"]) == found["one"]["current"] == 2
    lighter, darker = sorted((luminance(found["all"]["background"]), luminance(found["all"]["color"])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) > 7
    assert (luminance(found["all"]["background"]) < 0.1) == dark


@browser
def test_a_list_is_shown_in_its_order(folder: Path, tmp_path: Path) -> None:
    path = folder / "out.json"
    sheet(folder, "--json", str(path))
    wanted = [entry["image"] for entry in json.loads(path.read_text())["metrics"][0]["worst_by_class"][3]]
    assert looked_at(folder, tmp_path, 1280, dark=False)["one"]["shown"] == wanted


@browser
def test_the_console_is_heard(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text("<!doctype html><script>nonsense()</script>")
    _, said = chromium(tmp_path / "x.html", tmp_path / "profile")
    assert "nonsense is not defined" in said[0]
