"""The report page: its figures and tables are held to the numbers in the folder, and a browser looks at it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.nn import functional

from autosegloss import load_loss, search
from autosegloss.cli import main
from autosegloss.loss import named_loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy.train import predict
from autosegloss.proxy.trial import Proxy
from autosegloss.report.pages import figures
from autosegloss.report.pages.elements import class_colour
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.pages.figures import surface_values, toy_label
from autosegloss.report.pages.report import report_page
from autosegloss.report.shown import loss_line
from autosegloss.search.compare import compare
from autosegloss.search.content import bare_content
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config, load_config
from tests.journals import rewrite, trials_of
from tests.report.test_contact_sheet import browser, chromium, luminance

EVIL = '<script>alert("1")</script>'
CLASSES = (EVIL, 'a & b "c"', "a_name_without_any_break_that_is_very_long_indeed")
SEARCH = {
    "metric": "miou",
    "relaxation": {"curve": "bezier", "pieces": 1, "class_power": 0.5},
    "proxy": {
        "data": {"name": "tests.report.test_page:squares", "title": EVIL},
        "start": {"regime": "scratch"},
        "train": {"iterations": 6, "batch_size": 4},
    },
    "rivals": {"losses": []},
    "search": {"steps": 3, "samples": 4},
    "finalists": {"candidates": 1, "seeds": 3},
    "compare": {"steps": [1]},
}
LOSSES = ["cross_entropy", "asl/voc/miou", "0.25*cross_entropy + 0.75*jml"]


def squares(title: str = "") -> dict[str, Any]:
    """Squares of two classes on a ground, with names that are no harmless text."""
    rng = np.random.default_rng(7)
    pairs = []
    for _ in range(26):
        labels = np.zeros((32, 32), np.uint8)
        for c in (1, 2):
            row, column = rng.integers(0, 20, 2)
            labels[row : row + 12, column : column + 12] = c
        image = 60 * np.stack([labels, 2 - labels, labels]) + rng.integers(0, 60, (3, 32, 32))
        labels[0, :3] = 255
        pairs.append((image.astype(np.uint8), labels))
    return {"classes": list(CLASSES), "train": pairs[:18], "validation": pairs[18:]}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real search, with its page."""
    folder = tmp_path_factory.mktemp("page") / "search"
    search(SEARCH, runner="serial", out=folder)
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real comparison, with its page."""
    folder = tmp_path_factory.mktemp("page") / "compare"
    compare(SEARCH, LOSSES, folder, seeds=3, runner="serial", command=f"autosegloss compare {EVIL}")
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture
def plain_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surfaces of no loss, for tests of other things: they take seconds."""
    monkeypatch.setattr(figures, "surface_values", lambda _: np.add.outer(np.arange(3.0), np.arange(3.0)))


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text()


def section(text: str, key: str) -> str:
    return text.split(f'<section aria-labelledby="{key}">', 1)[1].split("</section>\n<section aria", 1)[0]


def rows_of(html: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell, without tags."""
    found = {}
    for row in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html):
        cells = re.findall(r"<td>(.*?)</td>", row[1])
        found[unescape(row[0])] = [re.sub(r"<[^>]+>", "", cell.replace("<br>", "; ")) for cell in cells]
    return found


def trials(folder: Path) -> list[dict[str, Any]]:
    return trials_of(folder / "trials.jsonl")


def interval(values: list[float], sign: str = "") -> str:
    """By scipy's own interval."""
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def marked(values: list[float]) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return {(True, False): "▲ ", (False, True): "▼ "}.get((low > 0, high < 0), "") + interval(values, "+")


# Its figures and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_trial_is_a_dot_at_its_reward(searched: Path) -> None:
    plot = re.findall(r"<svg.*?</svg>", section(text_of(searched), "search"))[0]
    places = [float(y) for y in re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', plot)]
    rewards = [trial["reward"] for trial in trials(searched) if trial["stage"] == "search" and trial["index"] < 4]
    assert len(rewards) == len(places) == 12
    slope, start = np.polyfit(rewards, places, 1)
    assert slope < 0  # up is more
    assert np.abs(slope * np.array(rewards) + start - places).max() < 0.02
    mean = re.search(r'<path class="line mean" d="M([^"]+)"', plot)
    assert mean
    heights = [float(point.split()[1]) for point in mean[1].split("L")]
    means = [np.mean(rewards[step * 4 : step * 4 + 4]) for step in range(3)]
    assert np.allclose(heights, slope * np.array(means) + start, atol=0.02)
    start_line = re.search(r'<path class="line start" d="M([^"]+)"', plot)
    assert start_line
    starts = [trial["reward"] for trial in trials(searched) if trial["stage"] == "search" and trial["index"] == 4]
    heights = [float(point.split()[1]) for point in start_line[1].split("L")]
    assert np.allclose(heights, slope * np.array(starts) + start, atol=0.02)
    finals = [trial for trial in trials(searched) if trial["stage"] == "final" and trial["theta"] is None]
    level = re.search(r'<path class="line cross-entropy" d="M[\d.]+ ([\d.]+)', plot)
    assert level
    assert float(level[1]) == pytest.approx(slope * np.mean([t["reward"] for t in finals]) + start, abs=0.02)


def test_every_coordinate_has_its_samples_and_the_centre_that_they_were_drawn_around(searched: Path) -> None:
    panels = re.findall(r"<svg.*?</svg>", section(text_of(searched), "search"))[1:]
    panels = [panel for panel in panels if "plot" in panel]
    sampled = [trial for trial in trials(searched) if trial["stage"] == "search" and trial["index"] < 4]
    thetas = np.array([trial["theta"] for trial in sampled])
    assert len(panels) == thetas.shape[1] == 8  # 2 curves of a point, the scale and 3 shares
    for panel, column in zip(panels, thetas.T, strict=True):
        assert 'class="band"' in panel
        dots, centres = (
            [float(y) for y in re.findall(rf'<circle class="{kind}" cx="[\d.]+" cy="([\d.]+)"', panel)]
            for kind in ("dot", "centre")
        )
        slope, start = np.polyfit(column, dots, 1)
        assert np.abs(slope * column + start - dots).max() < 0.02
        said = re.search(r"centre from ([\d.]+) to ([\d.]+)", panel)
        assert said
        assert [(centres[i] - start) / slope for i in (0, -1)] == pytest.approx([*map(float, said.groups())], abs=0.006)
    assert "the sum, share of cross-entropy: centre from 0.50" in panels[-1]


def test_the_table_has_the_means_and_intervals_of_the_runs(searched: Path) -> None:
    found = json.loads((searched / "loss.json").read_text())["provenance"]
    runs: dict[str, list[dict[str, float]]] = {"cross-entropy": [], "start": [], "found": []}
    for trial in trials(searched):
        if trial["stage"] == "final":
            if trial["theta"] is None:
                runs["cross-entropy"].append(trial["validation"])
            if trial["index"] == 1:
                runs["start"].append(trial["validation"])
            if trial["theta"] == found["theta"]:
                runs["found"].append(trial["validation"])
    rows = rows_of(section(text_of(searched), "metrics"))
    names = {"target: miou": "target", "gacc": "gacc"} | {f"IoU of {name}": f"IoU of {name}" for name in CLASSES}
    for title, name in names.items():
        columns = [[run[name] for run in each] for each in runs.values()]
        differences = [np.subtract(columns[2], columns[i]).tolist() for i in (0, 1)]
        assert rows[title][:3] == [interval(column) for column in columns]
        if np.ptp(differences[0]) > 0:
            assert rows[title][3] == marked(differences[0])
    assert len(rows) > 25


@pytest.mark.slow
def test_a_comparison_has_the_numbers_of_its_table(compared: Path) -> None:
    table = json.loads((compared / "table.json").read_text())
    rows = rows_of(section(text_of(compared), "metrics"))
    for title, name in (("target: miou", "target"), ("ece", "ece"), ("fwiou", "fwiou")):
        columns = [[run[name] for run in row["runs"]] for row in table["rows"]]
        assert rows[title][0] == interval(columns[0])
        for cell, column, row in zip(rows[title][1:], columns[1:], table["rows"][1:], strict=True):
            verdict = f"{row['differences'][name]['verdict'] or ''} ".lstrip()
            assert cell == f"{interval(column)}; {verdict}{interval(np.subtract(column, columns[0]).tolist(), '+')}"
    bars = section(text_of(compared), "classes")
    widths = [float(each) for each in re.findall(r'<rect class="s\d" width="([\d.]+)%"', bars)]
    names = ["target", *(f"IoU of {name}" for name in CLASSES)]
    means = [100 * row["scores"][name]["mean"] for name in names for row in table["rows"]]
    assert widths == pytest.approx(means, abs=0.006)


def test_every_loss_of_a_comparison_is_shown_whatever_their_number_and_names(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of a made-up table: 23 with names of 300 characters, one that can't be drawn, one class at 0."""
    monkeypatch.setattr(figures, "surface_values", lambda loss: surface_values(loss, size=3))
    table = json.loads((compared / "table.json").read_text())
    row, definitions = table["rows"][1], table["plan"]["definitions"][""]
    names = ["cross_entropy", *(f"{EVIL}{i}" + "x" * 300 for i in range(22))]
    weighted = bare_content(named_loss("weighted_cross_entropy", counts=np.array([5, 3, 2])))
    table["plan"]["losses"] = names
    table["plan"]["definitions"][""] = {name: definitions["cross_entropy"] for name in names} | {names[1]: weighted}
    copies = [json.loads(json.dumps(row)) | {"loss": name, "tuned": row["tuned"] | {"name": name}} for name in names]
    table["rows"] = [table["rows"][0], *copies[1:]]
    for each in table["rows"]:
        each["scores"][f"IoU of {CLASSES[1]}"]["mean"] = 0.0
    table["rows"][2] |= {"runs": [None] * 3, "scores": {}, "differences": {}, "errors": [f"MemoryError: {EVIL}"] * 3}
    (tmp_path / "table.json").write_text(json.dumps(table))
    text = report_page(tmp_path, images=False)
    assert "<script" not in text
    goal = section(text, "target")
    assert list(rows_of(goal)) == names
    assert "3 of 3 runs failed" in goal
    assert "IoU below 1% with every loss: <code>a &amp; b" in goal
    for key in ("metrics", "classes", "surfaces"):
        shown = unescape(section(text, key))
        assert all(name in shown for name in names[1:]), key
    assert section(text, "metrics").count("<table>") == 5
    assert "not shown. weight has 3 numbers" in section(text, "surfaces")
    assert text.count("often called val") == text.count("often called test") == 1


@pytest.mark.usefixtures("plain_surfaces")
def test_settings_and_verdicts_of_a_comparison_are_shown_where_there_are_any(compared: Path, tmp_path: Path) -> None:
    table = json.loads((compared / "table.json").read_text())
    other = json.loads(json.dumps(table["rows"]))
    for setting, rows in (("small", table["rows"]), (EVIL, other)):
        for row in rows:
            row["setting"] = setting
            for difference in row["differences"].values():
                difference["verdict"] = None
    plan = table["plan"]
    for part in (plan["definitions"], plan["configurations"], plan["steps"], table["notes"]):
        part |= {"small": part[""], EVIL: part.pop("")}
    other[1]["differences"]["gacc"]["verdict"] = "worse"
    table["rows"] += other
    shutil.copytree(compared, tmp_path / "x")
    (tmp_path / "x/table.json").write_text(json.dumps(table))
    html = section(report_page(tmp_path / "x", images=False), "metrics")
    first, second = html.split("<h3>")[1:]
    assert unescape(second).startswith(EVIL)
    assert "worse" not in "".join(map("".join, rows_of(first).values()))
    verdicts = [title for title, cells in rows_of(second).items() if "worse" in "".join(cells)]
    assert verdicts == ["gacc"]
    assert "Holm" in html
    assert "▲" not in html


def test_the_surface_is_the_loss_of_the_image_that_it_says(searched: Path) -> None:
    """By hand: soft counts of two classes for one pair of probabilities, and cross-entropy by PyTorch."""
    label = toy_label()
    square = int(label.sum())
    assert (label.numel(), square) == (1024, 144)
    values = surface_values(load_loss("soft_dice"), size=5)
    axis = np.linspace(0.01, 0.99, 5)
    p, q = axis[3], axis[1]
    dice = [
        2 * square * p / (square + square * p + (1024 - square) * q),
        2 * (1024 - square) * (1 - q) / (1024 - square + square * (1 - p) + (1024 - square) * (1 - q)),
    ]
    assert values[1, 3] == pytest.approx(1 - np.mean(dice), abs=1e-9)
    entropy = surface_values(CrossEntropy(), size=5)
    ones = torch.full(label.shape, float(q), dtype=torch.float64).masked_fill(label == 1, float(p))
    expected = functional.nll_loss(torch.stack([1 - ones, ones], 1).log(), label)
    assert entropy[1, 3] == pytest.approx(float(expected), abs=1e-9)
    shown = section(text_of(searched), "surfaces")
    assert re.findall(r"Loss surface of (.*?):", shown) == ["found loss", "cross-entropy", "soft Dice"]
    found = surface_values(load_loss(searched / "loss.json"))
    assert f"found loss: {found[0, -1]:.3g} where all is right, {found[-1, 0]:.3g} where all is wrong" in shown


def test_the_curves_are_those_of_the_loss(searched: Path) -> None:
    loss: Any = load_loss(searched / "loss.json")
    shown = section(text_of(searched), "curves")
    plots = re.findall(r"<svg.*?</svg>", shown)
    curves = loss.parts[-1].curves
    assert len(plots) == len(curves) == 2
    assert unescape(text_of(searched)).count(loss_line(loss)) == 1
    for plot, curve in zip(plots, curves.values(), strict=True):
        assert 'class="line identity"' in plot
        path = plot.split('class="line found" d="M')[1].split('"')[0]
        drawn = np.array([point.split() for point in path.split("L")], float)
        (x0, y0), (x1, y1) = drawn[0], drawn[-1]
        heights = (drawn[:, 1] - y0) / (y1 - y0)
        expected = curve(torch.linspace(0, 1, len(drawn), dtype=torch.float64)).numpy()
        assert np.abs(heights - expected).max() < 1e-3
        assert np.allclose((drawn[:, 0] - x0) / (x1 - x0), np.linspace(0, 1, len(drawn)), atol=1e-3)


class Pictures(HTMLParser):
    """The pictures of a page, by their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: dict[str, np.ndarray] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "img":
            data = base64.b64decode((attributes["src"] or "").split(",", 1)[1])
            self.all[attributes["alt"] or ""] = np.asarray(Image.open(io.BytesIO(data)))


def test_the_pictures_are_what_the_networks_of_the_record_say(searched: Path) -> None:
    text = section(text_of(searched), "images")
    assert text.count("as recorded") == 2
    config = load_config(searched / "config.yaml")
    proxy = proxy_of(config).prepare()
    record = json.loads((searched / "loss.json").read_text())["provenance"]
    validation = proxy.dataset.validation
    losses = CrossEntropy(), proxy.loss(json.loads((searched / "loss.json").read_text()))
    maps = [predict(proxy.trained(loss, record["seeds"][0]), validation) for loss in losses]
    pictures = Pictures(text).all
    shown = [int(each) for each in re.findall(r"<h4>Validation image (\d+)", text)]
    assert shown
    assert len(pictures) == 6 * len(shown)
    gains, found = [], []
    for number, label in enumerate(validation.labels):
        scores = []
        for made in maps:
            own = [c for c in range(3) if (label == c).any() or ((made[number] == c) & (label < 255)).any()]
            both = [((label == c) & (made[number] == c)).sum() for c in own]
            either = [(((label == c) | (made[number] == c)) & (label < 255)).sum() for c in own]
            scores.append(np.mean(np.divide(both, either)))
        gains.append(scores[1] - scores[0])
        found.append(scores[1])
        if number in shown:
            assert f"image {number}: change of its score {100 * gains[-1]:+.1f}" in text
            card = text.split(f"<h4>Validation image {number}:")[1].split("</article>")[0]
            assert [f"{100 * score:.1f}" for score in scores] == re.findall(r"<figcaption>[^<]*: ([\d.]+)</figc", card)
    order = np.argsort(-np.array(gains), kind="stable")
    expected = [i for i in order if gains[i] > 0][:3] + [i for i in order[::-1] if gains[i] < 0][:3]
    assert shown[: len(expected)] == expected
    rest = shown[len(expected) :]  # the others with the lowest scores, the lowest first
    assert len(rest) == min(3, len(gains) - len(expected))
    assert rest == sorted(set(range(len(gains))) - set(expected), key=lambda number: found[number])[: len(rest)]
    for number in shown:
        for name, made in zip(("cross-entropy", "found loss"), maps, strict=True):
            (told,) = (p for alt, p in pictures.items() if alt.startswith(f"prediction of {name} for image {number}:"))
            (wrong,) = (p for alt, p in pictures.items() if alt.startswith(f"errors of {name} in image {number}:"))
            for c in range(3):
                assert (told[made[number] == c][:, :3] == class_colour(c)).all()
            errors = (made[number] != validation.labels[number]) & (validation.labels[number] != 255)
            assert ((wrong == (222, 62, 40, 255)).all(-1) == errors).all()


def test_pictures_from_files_carry_their_names_and_those_without_a_score_are_left_out(tmp_path: Path) -> None:
    """Files with names that are HTML; the metric counts only the leaf, which one image does not have."""
    for number in range(8):
        label = np.zeros((16, 16), np.uint8)
        label[4:12, 4:12] = number > 0
        for kind, pixels in (("images", 200 * label), ("masks", label)):
            path = tmp_path / kind / f"day {number % 2}" / f"<b>{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    data = {"name": "folder", "root": str(tmp_path), "classes": ["ground", "leaf"], "cache": str(tmp_path / "cache")}
    config = {
        "metric": "class_mean(total(pred & target) / total(target), where=total(target), background=False)",
        "proxy": {"data": data | {"validation": 0.5}, "start": {"regime": "scratch"}, "train": {"iterations": 1}},
    }
    proxy = proxy_of(as_config(config))
    names = proxy.dataset.names
    assert len(names) == 4
    losses = [Trained("one", CrossEntropy(), None), Trained("other", load_loss("jml"), None)]
    titles = re.findall(r"<h4>(.*?): change", examples(proxy, losses, losses[1], seed=0))
    scored = {name for name, label in zip(names, proxy.dataset.validation.labels, strict=True) if label.any()}
    assert len(titles) == len(scored) > 2
    assert {unescape(title) for title in titles} == scored
    assert all(re.fullmatch(r"day [01]/&lt;b&gt;\d\.png", title) for title in titles)


@pytest.mark.usefixtures("plain_surfaces")
def test_a_training_that_does_not_repeat_the_record_is_said(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path / "x")
    lines = trials(searched)
    first = next(line for line in lines if line["stage"] == "final" and line["theta"] is None)
    first["validation"]["target"] += 0.125
    rewrite(tmp_path / "x/trials.jsonl", lines)
    text = section(report_page(tmp_path / "x"), "images")
    assert f"{100 * first['validation']['target']:.2f} % is recorded</strong>" in text
    assert text.count("as recorded") == 1


@pytest.mark.usefixtures("plain_surfaces")
def test_data_that_is_not_there_leaves_the_reason(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path / "x")
    path = tmp_path / "x/config.yaml"
    path.write_text(path.read_text().replace("tests.report.test_page:squares", "tests.report.test_page:gone"))
    text = section(report_page(tmp_path / "x"), "images")
    assert "There are no pictures" in text
    assert "gone" in text
    assert "<img" not in text


@pytest.mark.usefixtures("plain_surfaces")
def test_without_images_nothing_is_loaded_or_trained(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Proxy, "load", refuse)
    assert "--no-images" in section(report_page(searched, images=False), "images")


@pytest.mark.usefixtures("plain_surfaces")
def test_the_curves_of_a_comparison_are_those_of_its_table(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "x")
    table = json.loads((compared / "table.json").read_text())
    slots = table["plan"]["definitions"][""]["asl/voc/miou"]["slots"]
    point = next(iter(slots.values()))[0]
    before, point[0] = f"({point[0]:.2f}, {point[1]:.2f})", 0.25
    (tmp_path / "x/table.json").write_text(json.dumps(table))
    assert before in section(text_of(compared), "curves")
    assert f"(0.25, {point[1]:.2f})" in section(report_page(tmp_path / "x", images=False), "curves")


def test_provenance_tells_seeds_versions_sums_and_configuration(searched: Path, compared: Path) -> None:
    text = section(text_of(searched), "provenance")
    record = json.loads((searched / "loss.json").read_text())["provenance"]
    for seed in {*record["seeds"], *(trial["seed"] for trial in trials(searched))}:
        assert str(seed) in text
    for name in ("config.yaml", "trials.jsonl", "loss.json"):
        assert hashlib.sha256((searched / name).read_bytes()).hexdigest() in text
    assert (searched / "config.yaml").read_text() in unescape(text)
    assert f"torch {torch.__version__}" in text
    assert f"autosegloss compare {EVIL}" in unescape(section(text_of(compared), "provenance"))


# What it is made of ---------------------------------------------------------------------------------------------------


def test_the_same_folder_gives_the_same_bytes(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path / "elsewhere")
    assert main(["report", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == (searched / "report.html").read_bytes()


@pytest.mark.parametrize("kind", ["searched", "compared"])
def test_it_asks_for_nothing_outside_and_runs_no_name(kind: str, request: pytest.FixtureRequest) -> None:
    text = text_of(request.getfixturevalue(kind))
    assert "://" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "script-src" not in text  # then the default holds: none
    assert "default-src 'none'" in text


def cut_journal(folder: Path) -> None:
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:15]))


def another_loss(folder: Path) -> None:
    content = json.loads((folder / "loss.json").read_text())
    points = next(iter(content["parts"][-1]["slots"].values()))
    points[0][0] /= 2
    (folder / "loss.json").write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "14 of 26 trials are done. Continue": cut_journal,
    "--resume": lambda folder: (folder / "loss.json").unlink(),
    "not the folder of a search": lambda folder: (folder / "config.yaml").unlink(),
    "nothing to report": lambda folder: [each.unlink() for each in folder.iterdir()],
    "trials.jsonl:1: this line is damaged": lambda folder: (folder / "trials.jsonl").write_text("rubbish\nrubbish\n"),
    "loss.json": lambda folder: (folder / "loss.json").write_text("{"),
    "not the loss that the journal": another_loss,
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_search_that_is_no_finished_one_is_refused(searched: Path, tmp_path: Path, capsys: Any, message: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(searched, folder)
    (folder / "report.html").unlink()
    DAMAGES[message](folder)
    assert main(["report", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


NO_RUNS = '{"plan": {"seeds": [1], "definitions": {}}, "target": "miou", "rows": [{"loss": "x", "runs": []}]}'


@pytest.mark.parametrize("table", ["{", "[]", "{}", NO_RUNS, "\udcff", None])
def test_a_comparison_that_is_damaged_is_refused(
    compared: Path, tmp_path: Path, capsys: Any, table: str | None
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(compared, folder)
    if table is None:
        (folder / "table.json").unlink()
    else:
        (folder / "table.json").write_bytes(table.encode(errors="surrogateescape"))
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "InputError" in said
    assert "--resume" in said


def test_a_bad_out_is_refused_before_any_work(searched: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("autosegloss.cli.report_page", lambda *_, **__: pytest.fail("there was work"))
    before = (searched / "loss.json").read_bytes()
    for out, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no/page.html", "its folder does not exist"),
        (searched / "loss.json", "this file belongs to the search"),
    ):
        assert main(["report", str(searched), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert (searched / "loss.json").read_bytes() == before


# In a browser ---------------------------------------------------------------------------------------------------------

PROBE = """<!doctype html>
<meta charset="utf-8">
<body style="margin: 0">
<pre id="found"></pre>
<script>
const found = {};
async function look(name, width) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; width: ${width}px; height: 900px`;
  const loaded = new Promise((done) => { frame.onload = done; });
  frame.src = `${name}.html`;
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, view = frame.contentWindow;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const scrolls = (node) => node && (view.getComputedStyle(node).overflowX === "auto" || scrolls(node.parentElement));
  const texts = [...page.querySelectorAll("body *")].filter((node) =>
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) && node.getClientRects().length);
  const box = (node) => {
    const range = page.createRange();
    range.selectNodeContents(node);
    return node.closest("svg") ? node.getBoundingClientRect() : range.getBoundingClientRect();
  };
  const outside = (node) => {
    const inner = box(node), svg = node.closest("svg"), outer = svg && svg.getBoundingClientRect();
    return inner.right > page.documentElement.clientWidth + 1 || inner.left < -1 || outer &&
      (inner.left < outer.left - 2 || inner.right > outer.right + 2 || inner.top < outer.top - 2 ||
       inner.bottom > outer.bottom + 2);
  };
  const wider = (node) => !node.closest("svg") && node.clientWidth && node.scrollWidth > node.clientWidth + 1;
  const cut = texts.filter((node) => (wider(node) || outside(node)) && !scrolls(node));
  const regions = [...page.querySelectorAll(".scroll")];
  const focused = regions.filter((node) => {
    node.focus();
    return page.activeElement === node && node.getAttribute("aria-label") && node.getAttribute("role") === "region";
  });
  const style = view.getComputedStyle(page.body);
  const ink = page.querySelector("svg.plot text");
  found[`${name} ${width}`] = {
    width: page.documentElement.scrollWidth,
    cut: cut.map((node) => node.textContent),
    pictures: [...page.images].map((image) => image.naturalWidth),
    plots: [...page.querySelectorAll("svg.plot")].map((node) => node.getBoundingClientRect().width),
    named: [...page.querySelectorAll("svg.plot")].every((node) => node.getAttribute("aria-label")),
    small: Math.min(...[...page.querySelectorAll("svg.plot text")].map((node) =>
      parseFloat(view.getComputedStyle(node).fontSize) * node.getScreenCTM().a || Infinity)),
    wide: regions.filter((node) => node.querySelector("table") && node.scrollWidth > node.clientWidth + 1).length,
    regions: regions.length, focused: focused.length,
    links: [...page.querySelectorAll("nav a")].map((link) => Boolean(page.querySelector(link.getAttribute("href")))),
    background: style.backgroundColor, color: style.color, ink: view.getComputedStyle(ink).fill,
  };
}
(async () => {
  for (const name of ["search", "compare"]) for (const width of [1280, 1100, 400]) await look(name, width);
  document.querySelector("#found").textContent = JSON.stringify(found);
})();
</script>
"""


@browser
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(searched: Path, compared: Path, tmp_path: Path, dark: bool) -> None:
    shutil.copy(searched / "report.html", tmp_path / "search.html")
    shutil.copy(compared / "report.html", tmp_path / "compare.html")
    (tmp_path / "probe.html").write_text(PROBE)
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    text, said = chromium(tmp_path / "probe.html", tmp_path / "profile", scheme)
    assert said == []
    found = re.search(r'<pre id="found">(.+?)</pre>', text, re.DOTALL)
    assert found, text[-2000:]
    looks = json.loads(unescape(found[1]))
    assert set(looks) == {f"{name} {width}" for name in ("search", "compare") for width in (1280, 1100, 400)}
    for name, look in looks.items():
        assert look["width"] <= int(name.split()[1]), name
        assert look["cut"] == [], name
        assert len(look["pictures"]) >= 6
        assert all(look["pictures"]), name
        assert len(look["plots"]) == (1 + 8 + 2 + 3 if "search" in name else 4 + 4), name
        assert min(look["plots"]) > 100, name
        assert look["named"]
        assert look["small"] > 9, name
        assert look["regions"] == look["focused"] > 1, name
        assert look["wide"] == 0 or "400" in name, name  # the last column of every table is in sight
        assert look["links"]
        assert all(look["links"])
        ground = luminance(look["background"])
        assert (ground < 0.1) == dark
        for colour, contrast in ((look["color"], 7), (look["ink"], 4.5)):
            lighter, darker = sorted((ground, luminance(colour)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) > contrast, name
