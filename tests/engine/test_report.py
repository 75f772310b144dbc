"""The page of a run: what a browser makes of it, names of any kind, runs without anything to show, and failures."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import report as reporting
from engine.charts import Axis
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.command import main
from engine.config import resolve
from engine.evaluation_table import print_figures
from engine.figures import figures
from engine.gallery import OF_A_LABEL, confident_mistakes, pipeline_sheet
from engine.predicted import Predicted
from engine.report import Arguments, report, write_page
from engine.report_charts import short
from engine.run import Run, write_json
from engine.thresholds import tuned_thresholds
from engine.trained import load_trained
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.read import read_dataset
from tests.conftest import picture
from tests.engine.test_train import trainer_of

ODD = ("<script>window.harm=1</script>", "../../x", "long" * 50, "قطة صغيرة", "a & b", "$x_2$", "plain")
Make = Callable[..., Run]


def answers(labels: int, rows: int, positive: bool, seed: int = 0) -> tuple[Any, Any]:
    """Probabilities of a network that knows something, and targets of a long tail."""
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, labels)) < (np.geomspace(0.5, 0.02, labels) if positive else 0)
    noise = rng.normal(-2, 1.5, targets.shape) + 3 * targets
    return (1 / (1 + np.exp(-noise))).astype(np.float32), targets


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """A run's folder as training leaves it, without the network."""

    def make(
        labels: tuple[str, ...], rows: int = 40, positive: bool = True, epochs: int = 4, files: tuple[str, ...] = ()
    ) -> Run:
        run = Run(tmp_path / "run <b>")
        run.create()
        probabilities, targets = answers(len(labels), rows, positive)
        few = len(labels) < 200
        thresholds = tuned_thresholds(probabilities, targets).tolist() if few else [0.5] * len(labels)
        found = Predicted(files or tuple(f"images/{i}.jpg" for i in range(rows)), probabilities, targets, 0.3)
        found.save(run.validation)
        content = figures(labels, probabilities, targets, thresholds, draws=50 if few else 2)
        write_json(run.report, {"split": "val", "epoch": min(3, epochs), "loss": 0.3, **content})
        write_json(run.thresholds, dict(zip(labels, thresholds, strict=True)))
        write_json(run.config, {**resolve("demo", {"data": str(tmp_path / "gone")}).values(), "labels": list(labels)})
        line = {"train_loss": 0.4, "val_loss": 0.3, "micro_f1": 0.5, "macro_f1": 0.4, "map": 0.5, "lr": 0.1}
        line |= {"images_per_s": 99.0, "data_wait_fraction": 0.02, "seconds": 70.0}
        run.write_metrics({"epoch": i + 1, **line} for i in range(epochs))
        return run

    return make


@pytest.fixture
def odd_data(tmp_path: Path) -> Dataset:
    """40 pictures with labels of odd names."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(40):
        picture(i).save(tmp_path / "data" / "images" / f"{i}.jpg")
    lines = ["image,labels", *(f'{i}.jpg,"{ODD[i % 7]}|{ODD[(i + 1) % 7]}"' for i in range(40))]
    (tmp_path / "data" / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_dataset(tmp_path / "data", val_fraction=0.5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("a browser is needed and there is no chromium (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser and is not installed")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page of a run in a browser, and what the browser complained of or asked for."""

    def __init__(self, browser: Any, run: Run, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(run.page.absolute().as_uri())

    def column(self, number: int) -> list[str]:
        """The values of a column of the table of labels, from top to bottom."""
        script = f"rows => rows.map(row => row.cells[{number}].dataset.value)"
        values: list[str] = self.page.eval_on_selector_all("table.sortable tbody tr", script)
        return values

    def colour(self) -> str:
        value: str = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return value

    def close(self) -> None:
        """Raises AssertionError where something went wrong, or anything beside the page was asked for."""
        self.page.wait_for_load_state("networkidle")
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []
        assert sum(url.startswith("file:") for url in self.asked) == 1


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_in_a_browser(browser: Any, made: Make, odd_data: Dataset, width: int) -> None:
    run = made(odd_data.labels, files=odd_data.files)
    write_page(run, odd_data)
    visit = Visit(browser, run, width)
    page = visit.page
    assert page.evaluate("window.harm") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img").count() > 10
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.alt)")

    pictures = [int(value) for value in visit.column(1)]
    assert pictures == sorted(pictures, reverse=True)
    assert set(visit.column(0)) == set(ODD)
    f1 = page.locator("th", has_text=re.compile(r"^F1$")).locator("button")
    f1.click()
    down = visit.column(2)  # the rarest label has no picture, and so no F1
    numbers = [float(value) for value in down if value]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1]
    assert down[-1] == ""
    f1.click()
    assert [float(value) for value in visit.column(2) if value] == sorted(numbers)
    assert visit.column(2)[-1] == ""
    page.locator("th", has_text="Label").locator("button").click()
    names = visit.column(0)
    assert names.index("a & b") < names.index("long" * 50) < names.index("plain")
    assert page.locator("th[aria-sort=ascending]").inner_text().strip() == "Label"

    light = visit.colour()
    page.locator("#theme").click()
    assert visit.colour() != light
    page.locator("#theme").click()
    assert visit.colour() == light

    assert not page.locator("#tip").is_visible()
    page.locator("circle[data-tip]").first.hover()
    assert "pictures" in page.locator("#tip").inner_text()
    page.locator("svg[data-readings]").first.hover()
    assert "validation" in page.locator("#tip").inner_text()
    visit.close()


def test_the_system_s_theme_is_taken_until_one_is_chosen(browser: Any, made: Make) -> None:
    run = made(("a", "b"))
    write_page(run, None)
    light, dark = Visit(browser, run), Visit(browser, run, scheme="dark")
    assert light.colour() != dark.colour()
    dark.page.locator("#theme").click()
    assert dark.colour() == light.colour()
    dark.page.reload()
    assert dark.colour() == light.colour()
    light.close()
    dark.context.close()


@pytest.mark.parametrize(
    ("labels", "positive", "epochs"),
    [(100, True, 1), (5, False, 4), (1, True, 0)],
    ids=["100-labels", "no-positives", "one-label-no-epoch"],
)
def test_runs_with_much_or_little_to_show(browser: Any, made: Make, labels: int, positive: bool, epochs: int) -> None:
    names = tuple(f"label {i}" for i in range(labels))
    run = made(names, rows=60, positive=positive, epochs=epochs)
    write_page(run, None)
    visit = Visit(browser, run, 390)
    assert len(visit.column(0)) == labels
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    text = visit.page.inner_text("main")
    assert "nan" not in text.lower()
    assert ("No validation picture has a label" in text) == (not positive)
    if labels > 20:
        visit.page.fill("#filter", "label 7")
        assert visit.page.locator("table.sortable tbody tr:visible").count() == 11
    visit.close()


def test_pages_of_very_many_labels_stay_small(made: Make) -> None:
    run = made(tuple(f"{'long name ' * 20}{i}" for i in range(1200)), rows=30)
    write_page(run, None)
    assert run.page.stat().st_size < 5_000_000
    assert "1000 most frequent of 1200" in run.page.read_text()


def test_odd_names_are_text_everywhere(made: Make, odd_data: Dataset) -> None:
    run = made(odd_data.labels, files=odd_data.files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_page(run, odd_data)
    page = run.page.read_text(encoding="utf-8")
    assert "<script>window" not in page
    assert "&lt;script&gt;window.harm=1&lt;/script&gt;" in page
    assert "قطة صغيرة" in page
    assert "run &lt;b&gt;" in page
    assert page.count("<script>") == 1
    assert {path.name for path in run.figures.iterdir()} == {"learning_curves.png", "f1_of_each_label.png"}


def test_pictures_that_are_gone_or_damaged_leave_the_others(made: Make, odd_data: Dataset, tmp_path: Path) -> None:
    run = made(odd_data.labels, files=odd_data.files)
    root = shutil.copytree(odd_data.root, tmp_path / "copy")
    moved = replace(odd_data, root=root)
    write_page(run, moved)
    whole = run.page.read_text()
    shown = re.findall(r'alt="(\S+): (?:said|there)', whole)
    assert len(shown) > 4
    (root / shown[0]).write_text("no picture")
    write_page(run, moved.without([(moved.files.index(shown[1]), "no such picture")]))
    assert set(re.findall(r'alt="(\S+): (?:said|there)', run.page.read_text())) == set(shown) - set(shown[:2])
    assert "The data set is not where" not in run.page.read_text()


@pytest.mark.parametrize(("low", "high"), [(13, 15), (157, 159), (30, 30), (1, 3), (7, 9000)])
def test_every_axis_has_numbers(low: float, high: float) -> None:
    for log in (False, True):
        marks = Axis(low, high if high > low else 1.2 * low, log=log).marks()
        assert len(marks) > 1
        assert all(0 <= place <= 1 for place, _ in marks)
        assert len({text for _, text in marks}) == len(marks)


def test_names_in_wide_scripts_are_as_long_as_they_look() -> None:
    assert short("猫" * 30) == "猫" * 10 + "…"
    assert short("cat" * 30) == ("cat" * 30)[:21] + "…"
    assert short("猫") == "猫"


def test_labels_without_pictures_have_no_figures_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    probabilities, targets = answers(3, 40, True)
    targets[:, 2] = False
    content = figures(("a", "b", "c"), probabilities, targets, [0.5] * 3, draws=0)
    thresholds = {"thresholds": dict.fromkeys("abc", 0.5), "split": "val", "data": "d", "epoch": 1, "loss": 0.1}
    print_figures({**content, **thresholds})
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["c", "0", "–", "–", "–", "–", "0.500", "–", "–", "–"]


def test_without_the_data_set_the_page_says_so(made: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(("a", "b", "c"))
    assert report(Arguments(run=run.folder)) == 0
    assert "the page has no pictures" in capsys.readouterr().out
    assert "The data set is not where the run found it" in run.page.read_text()
    with pytest.raises(InputError, match="no such folder"):
        report(Arguments(run=run.folder, data=Path("/no/data")))


def test_an_unfinished_run_is_evaluated_first(trained_run: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    run.best.write_bytes(Run(trained_run).best.read_bytes())
    run.config.write_text(Run(trained_run).config.read_text())
    assert report(Arguments(run=run.folder)) == 0
    content = json.loads(run.report.read_text())
    assert content["epoch"] == 3
    assert set(json.loads(run.thresholds.read_text())) == {"bird", "cat", "dog"}
    assert len(Predicted.load(run.validation, 3).files) == content["rows"]
    assert 'src="data:image/jpeg' in run.page.read_text()


def test_a_page_of_a_run_whose_first_training_pictures_are_damaged(trained_run: Path, tmp_path: Path) -> None:
    """Its sheet is of others; without a single one it has none."""
    root = shutil.copytree(trained_run.parent / "data", tmp_path / "data")
    dataset = read_dataset(root, val_fraction=0.4)
    config = load_trained(trained_run).config
    names = [name for name, _ in pipeline_sheet(dataset, config)]
    rows = dataset.splits["train"]
    for row in rows[:-2]:
        (root / dataset.files[row]).write_text("no picture")
    assert len(pipeline_sheet(dataset, config)) == 2 < len(names)
    for row in rows[-2:]:
        (root / dataset.files[row]).write_text("no picture")
    assert pipeline_sheet(dataset, config) == []


def test_figures_of_an_epoch_that_the_run_has_left_behind_are_made_anew(trained_run: Path, tmp_path: Path) -> None:
    """And its thresholds are not taken for those of the network that is there now."""
    run = Run(shutil.copytree(trained_run, tmp_path / "run"))
    assert report(Arguments(run=run.folder)) == 0
    assert run.reported() == (3, False)
    assert not load_trained(run.folder).untuned
    state = load_checkpoint(run.best)
    save_checkpoint(run.best, {**state, "progress": {"epoch": 5}})
    assert load_trained(run.folder).untuned
    assert report(Arguments(run=run.folder)) == 0
    assert run.reported() == (5, False)
    assert not load_trained(run.folder).untuned
    run.best.unlink()
    assert report(Arguments(run=run.folder)) == 0


@pytest.mark.parametrize("file", ["report", "thresholds", "validation"])
def test_damaged_figures_are_one_line(made: Make, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(("a", "b"))
    path: Path = getattr(run, file)
    path.write_bytes(b'{"x": 1}')
    with pytest.raises(SystemExit) as leaving:
        main(lambda: report(Arguments(run=run.folder)))
    assert leaving.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert path.name in errors[0]


def test_a_page_that_cannot_be_drawn_costs_nothing(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("in a chart")

    monkeypatch.setattr(reporting, "_page", broken)
    trainer = trainer_of(read_dataset(table(), val_fraction=0.25), tmp_path / "run")
    trainer.saved.save_best(trainer.progress)
    trainer.saved.save(trainer.progress)
    trainer.saved.finish()
    trainer._final_report()
    run = trainer.run
    assert all(path.exists() for path in (run.last, run.best, run.report, run.thresholds, run.validation))
    assert not run.page.exists()
    assert "report.html could not be made: in a chart" in capsys.readouterr().out


def test_mistakes_are_the_most_confident_ones_of_different_pictures_and_labels() -> None:
    probabilities, targets = answers(4, 300, True)
    at = np.full(4, 0.5, np.float32)
    for wrong in (True, False):
        chosen = confident_mistakes(probabilities, targets, at, wrong)
        assert len({mistake.row for mistake in chosen}) == len(chosen) > 2
        assert max(sum(m.label == label for m in chosen) for label in range(4)) <= OF_A_LABEL
        for mistake in chosen:
            assert targets[mistake.row, mistake.label] != wrong
            assert (probabilities[mistake.row, mistake.label] >= 0.5) == wrong
        chances = [mistake.probability for mistake in chosen]
        assert chances == sorted(chances, reverse=wrong)
        every = (
            probabilities[(probabilities >= 0.5) & ~targets]
            if wrong
            else probabilities[(probabilities < 0.5) & targets]
        )
        assert chances[0] == (every.max() if wrong else every.min())


def test_labels_that_come_together_by_hand() -> None:
    from engine.cooccurrence import co_occurrence, confusions

    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], bool)
    decided = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    found = co_occurrence(("a", "b", "c"), decided, targets)
    assert found.labels == ("a", "b", "c")
    assert found.true[0].tolist() == [1, 0.5, 0]
    assert found.decided[0].tolist() == [1, 0, 1]
    assert np.isnan(found.decided[1]).all()
    assert [(p.first, p.second, p.true, p.decided) for p in found.pairs] == [("a", "c", 0, 3), ("a", "b", 2, 0)]
    assert confusions(("a", "b", "c"), np.tile(decided, (2, 1)), np.tile(targets, (2, 1))) == [("b", "c", 4)]
