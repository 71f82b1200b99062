"""The report from run folders written by hand: what it says, what it escapes, what it survives."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import uhkd
from references.reported import NASTY, write_run
from uhkd.cli.parser import parse
from uhkd.recipe import DistillRecipe
from uhkd.reporting.aggregates import agreement, by_frequency, confusion_changes, gains, spread
from uhkd.reporting.draw import HEAT, heat_ink, images, inline
from uhkd.reporting.figure_data import DARK, LIGHT, Bar, Bars, Curves, Heat, Line
from uhkd.reporting.figures import of_student_group
from uhkd.reporting.grouping import arrange
from uhkd.reporting.run_data import read_runs
from uhkd.reporting.stats import paired_difference
from uhkd.reporting.summary import summary_sentence
from uhkd.reporting.tables import HEAD, differing, summary_rows
from uhkd.runs import RunFolder

VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """What of a page can be checked without a browser: tags closed in order, ids, headings, words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*folders: Path, out: Path) -> Page:
    answer = uhkd.report(runs=folders, out=out)
    return Page(answer["page"].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "compared"
    for seed in range(3):
        write_run(root / f"scratch/seed-{seed}", method="scratch", seed=seed, accuracy=0.4 + 0.05 * seed)
        write_run(root / f"uhkd/seed-{seed}", seed=seed, accuracy=0.7 + 0.05 * seed)
    write_run(root / "kd/seed-0", method="kd", finished=False)
    return root


@pytest.fixture(scope="module")
def page(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(compared, out=tmp_path_factory.mktemp("page") / "page.html")


def test_runs_become_groups_of_seeds_and_a_student_group_with_its_teacher(compared: Path):
    runs, notes = read_runs([compared])
    report = arrange(runs, "title", notes)
    student_groups = {student_group.data: student_group for student_group in report.student_groups}
    whole = (
        student_groups["birds"] if len(student_groups) == 1 else max(report.student_groups, key=lambda f: len(f.groups))
    )
    assert {g.label: len(g.runs) for g in whole.groups if g.method != "kd"} == {"scratch": 3, "uhkd": 3}
    assert whole.focus.label == "uhkd" and whole.baseline is not None and whole.baseline.label == "scratch"
    assert [t.name for t in whole.teachers] == ["timm/huge"] and whole.teachers[0].parameters == 9_000_000
    # paired by seed: 0.75 - 0.45 at every one
    assert "+30.0 ± 0.0 points against scratch (3 seeds: " in summary_sentence(whole)
    rows = {
        row.label: dict(zip([name for name, _ in HEAD], row.cells, strict=True)) for row in summary_rows(whole, set())
    }
    assert rows["uhkd"]["top-1 %"].text == "75.0 ± 5.0" and rows["uhkd"]["FLOPs"].text == "2 M"
    assert rows["teacher: timm/huge"]["latency ms"].text == "7" and rows["teacher: timm/huge"]["size MB"].text == "36"
    assert rows["scratch"]["agrees with teacher %"].text == "-"
    assert any(note.startswith("kd/seed-0: not finished (2 of 3 epochs)") for note in report.notes)


def test_an_unfinished_run_stands_beside_the_others_of_its_data(compared: Path):
    """It has no fingerprint of its data yet: its recipe's name for the data must do."""
    (student_group,) = arrange(read_runs([compared])[0], "title").student_groups
    assert sorted(g.label for g in student_group.groups) == ["kd", "scratch", "uhkd"]
    kd = next(row for row in summary_rows(student_group, set()) if row.label == "kd")
    assert kd.cells[0].text == "0 of 1 finished" and "not recorded" in [cell.text for cell in kd.cells]


def test_the_page_is_whole_and_can_be_read_aloud(page: Page):
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False)), (
        "a level of headings is left out"
    )
    pictures = [a for a in page.all("svg") if "aria-hidden" not in a]
    assert pictures and all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in pictures)
    assert all(a.get("alt") for a in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    labelled = {a["for"] for a in page.all("label") if "for" in a}
    ranges = [a for a in page.all("input") if a["type"] == "range"]
    assert ranges and all(a["id"] in labelled for a in ranges)
    skip = next(a for a in page.all("a") if a.get("class") == "skip")
    assert (skip["href"] or "").removeprefix("#") in identifiers
    assert page.all("html")[0]["lang"] == "en"


def test_it_needs_nothing_from_elsewhere(page: Page):
    addresses = [a.get(key) or "" for _, a in page.tags for key in ("src", "href", "xlink:href") if key in a]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_part_is_there_and_says_how_to_read_it(page: Page):
    for words in (
        *("Summary", "Accuracy", "Learning curves", "Loss by term", "Gain by class: uhkd against scratch"),
        *("Confusions that changed: uhkd against scratch", "Agreement", "Speed of the training", "Spectra"),
        *("Error by frequency over the training", "Similarity of all levels (CKA)", "Recipes", "Environment"),
        *("not finished (2 of 3 epochs)", "None: no images were recorded with these runs"),
    ):
        assert words in page.text, words
    assert page.text.count("Look ") >= 8


def test_one_run_alone_reads_well(tmp_path: Path):
    page = page_of(write_run(tmp_path / "mine"), out=tmp_path / "page.html")
    assert page.text.count("not run") >= 2, "scratch and kd"
    assert "trained on labels alone (--method scratch) the gain is unknown" in page.text
    assert "Gain by class: uhkd against teacher" in page.text
    assert "mistakes that the teacher does not make" in page.text and "corrected" not in page.text


def test_words_from_run_folders_are_escaped(tmp_path: Path):
    run = write_run(tmp_path / "nasty", student="timm/" + NASTY.replace("\x1b", ""), settings=NASTY.replace("\x1b", ""))
    folder = RunFolder(run)
    folder.write_json(
        "card.json", {"name": NASTY, "classes": [NASTY, NASTY + "b", "</title><img src=x onerror=alert(1)>", "d"]}
    )
    result = folder.read_result()
    folder.write_json("result.json", result | {"data": NASTY, "teacher": NASTY})
    folder.write_json("environment.json", {NASTY: NASTY, "versions": {NASTY: [NASTY]}})
    (tmp_path / "nasty" / "metrics.csv").write_text(f"epoch,val_accuracy,{NASTY[:20]}\n1,0.5,1\n", encoding="utf-8")
    other = write_run(tmp_path / "base", method="scratch", student="timm/" + NASTY.replace("\x1b", ""))
    RunFolder(other).write_json("result.json", RunFolder(other).read_result() | {"data": NASTY})
    page = page_of(run, other, out=tmp_path / "page.html")
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        len(page.all("script")) == 1 and page.all("img") == [] and "onerror" not in {k for _, a in page.tags for k in a}
    )
    assert "<script>alert(1)" not in raw and "\u202e" not in raw and "\x1b" not in raw
    assert "<script>alert(1)</script>" in page.text, "shown as the text it is"


DAMAGED = [
    ("result.json", b"{"),
    (
        "result.json",
        b'{"metrics": 3, "sizes": [1], "teacher_metrics": "x", "data": 7, "teacher": 5, "parameters": "many"}',
    ),
    ("card.json", b'{"classes": 3}'),
    ("metrics.csv", b"epoch,val_accuracy\nx,y\n"),
    ("metrics.csv", b"epoch,val_accuracy\nnan,nan\n"),
    ("metrics.csv", b""),
    ("diagnostics.npz", b"PK no archive"),
    ("environment.json", b"[]"),
    ("recipe.yaml", b"- a\n- b\n"),
    ("recipe.yaml", b"method: 3\nseed: [1]\nteacher: {a: b}\nepochs: many\n"),
    ("test.json", b"\xff\xfe"),
]


@pytest.mark.parametrize(
    ("file", "content"),
    [pytest.param(*row, marks=() if i < 3 else pytest.mark.slow) for i, row in enumerate(DAMAGED)],
)
def test_a_damaged_file_is_named_and_the_rest_shown(tmp_path: Path, file: str, content: bytes):
    write_run(tmp_path / "runs" / "whole", seed=1)
    (write_run(tmp_path / "runs" / "hurt") / file).write_bytes(content)
    page = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert "timm/tiny on birds" in page.text
    if content in (b"{", b"[]", b"PK no archive", b"- a\n- b\n", b"\xff\xfe", b"epoch,val_accuracy\nx,y\n"):
        assert f"hurt: {file}: " in page.text


def test_absurd_numbers_break_no_axis(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "absurd"))
    arrays = folder.read_arrays()
    huge = {k: np.full_like(v, 1e308 if v.dtype == np.float64 else 1) for k, v in arrays.items()}
    huge["error_0"] = np.array([[np.nan, np.inf, 0, -1e308]] * 3)
    huge["student_spectrum_1"] = np.zeros((3, 4))
    folder.write_arrays(
        arrays | {k: v for k, v in huge.items() if k.startswith(("error", "student", "cka", "frequency"))}
    )
    rows = [{"epoch": e, "val_accuracy": a, "ce": a} for e, a in ((1, -1e308), (2, 1e308), (3, 0.5), (4, 1e300))]
    folder.write_metrics(rows)
    page = page_of(tmp_path / "absurd", out=tmp_path / "page.html")
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Spectra" in page.text and not re.search(r'(?:d|x|y|cx|cy|width)="[^"]*(?:nan|inf)', raw)


def test_a_long_training_and_many_classes_keep_the_page_small(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "long"))
    folder.write_metrics([{"epoch": e, "val_accuracy": e / 5000, "ce": 1 / (e + 1)} for e in range(5000)])
    labels = np.arange(20_000) % 1000
    said = np.where(np.arange(20_000) % 7 == 0, (labels + 1) % 1000, labels)
    arrays = {k: v for k, v in folder.read_arrays().items() if not k.startswith(("val_", "teacher_"))}
    folder.write_arrays(arrays | {"val_label": labels, "val_prediction": said, "teacher_prediction": labels})
    page = page_of(tmp_path / "long", out=tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 3e5
    assert "The 12 that gained and the 12 that lost most of 1000 classes." in page.text


def test_arrays_of_other_shapes_are_not_drawn(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "odd"))
    arrays = {k: v[:1] if v.ndim == 1 else v[0] for k, v in folder.read_arrays().items()}
    folder.write_arrays(arrays | {"cka_end": np.array(["x"]), "val_shown": np.array([10**9])})
    page = page_of(tmp_path / "odd", out=tmp_path / "page.html")
    assert "Not recorded: " in page.text and "Learning curves" in page.text


def test_a_run_from_before_these_arrays_says_so(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "old"))
    old = ("steps", "student_spectrum_0", "teacher_spectrum_0", "val_prediction", "val_label")
    kept = {k: v for k, v in folder.read_arrays().items() if k in old}
    folder.write_arrays(kept | {"latency_ms": np.array([1.5])})
    folder.latency.unlink()
    folder.write_json("result.json", {k: v for k, v in folder.read_result().items() if k != "sizes"})
    page = page_of(tmp_path / "old", out=tmp_path / "page.html")
    assert "thumbnails, FLOPs and size, predictions of the teacher" in page.text
    assert "student, first evaluation" in page.text and "not recorded" in page.text


def test_gradient_shares_are_drawn_where_they_were_noted(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "run"))
    rows = [row | {"grad_ce": 0.3, "grad_uhkd.features": 2.7} for row in folder.read_metrics()]
    folder.write_metrics([rows[0] | {"grad_ce": 0.9}, *rows[1:]])
    page = page_of(tmp_path / "run", out=tmp_path / "page.html")
    assert "Gradient by term" in page.text and "Last share in percent. uhkd: ce 10, uhkd.features 90." in page.text


def test_factors_and_lead_of_a_balance_are_drawn_and_are_no_terms(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "runs" / "run", balance="lead", balance_settings={"features_gate": 0.1}))
    told = zip((0.9, 0.5, 0.02), (1.0, 0.75, 0.12), (0.4, 0.2, 0.024), strict=True)
    rows = [
        row | {"factor_features": a, "factor_logits": b, "lead": c}
        for row, (a, b, c) in zip(folder.read_metrics(), told, strict=True)
    ]
    folder.write_metrics(rows)
    write_run(tmp_path / "runs" / "base", method="scratch")
    page = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert "Balance: weight of the teacher's terms" in page.text and "Dotted: the teacher's lead" in page.text
    said = "Last value, 0 to 1. uhkd: feature terms 0.02, logit terms 0.12, lead of the teacher 0.02."
    assert said in page.text  # scratch has no panel
    assert "balance: lead, balance_settings: {'features_gate': 0.1}" in page.text
    (student_group,) = arrange(read_runs([tmp_path / "runs"])[0], "").student_groups
    drawn = {drawing.key.partition("-")[2]: drawing for drawing in of_student_group(student_group)}
    assert [panel.title for panel in drawn["terms"].panels] == ["loss", "ce", "features"]
    (panel,) = drawn["balance"].panels
    assert isinstance(panel, Curves) and panel.y_label == "factor and lead"
    assert [list(line.y) for line in panel.lines] == [[0.9, 0.5, 0.02], [1.0, 0.75, 0.12], [0.4, 0.2, 0.024]]
    assert [line.dash for line in panel.lines] == [0, 1, 2] and len({line.hue for line in panel.lines}) == 3


def test_factors_of_several_teachers_and_of_a_schedule_are_named(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "run"))
    two = {"factor_1:features": 0.5, "factor_2:logits": 0.25, "lead_2": 0.1}
    folder.write_metrics([row | two for row in folder.read_metrics()])
    page = page_of(folder.path, out=tmp_path / "page.html")
    assert "uhkd: feature terms of teacher 1 0.50, logit terms of teacher 2 0.25, lead of teacher 2 0.10." in page.text
    folder.write_metrics(
        [row | {"factor_features": 0.5} for row in RunFolder(write_run(tmp_path / "b")).read_metrics()]
    )
    page = page_of(folder.path, out=tmp_path / "page.html")
    assert "uhkd: feature terms 0.50." in page.text and "Dotted: the teacher's lead" not in page.text


def test_runs_from_before_balances_have_no_such_figure(page: Page):
    assert "Balance" not in page.text and "factor" not in page.text


@pytest.mark.slow
def test_fifty_runs_stay_small_and_begin_with_eight_lines(tmp_path: Path):
    first = write_run(tmp_path / "runs" / "m0", method="fitnet")
    for i in range(1, 50):
        shutil.copytree(first, tmp_path / "runs" / f"m{i}")
        recipe = tmp_path / "runs" / f"m{i}" / "recipe.yaml"
        recipe.write_text(recipe.read_text() + f"radius: {i}\n")
    page = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 6e6
    picks = [a for a in page.all("input") if "data-pick" in a]
    assert len(picks) == 50 and sum("checked" in a for a in picks) == 8
    assert len({a["data-pick"] for a in picks}) == 50


@pytest.mark.slow
def test_figures_are_written_as_pictures_and_as_drawings(compared: Path, tmp_path: Path):
    answer = uhkd.report(runs=compared / "uhkd/seed-0", out=tmp_path / "r", figures=True)
    names = {path.name for path in answer["figures"]}
    kinds = ("accuracy", "learning", "terms", "classes", "confusions", "agreement", "speed")
    wanted = [*kinds, "uhkd-spectra", "uhkd-errors", "uhkd-cka"]
    assert names == {f"timm-tiny-{kind}.{end}" for kind in wanted for end in ("png", "svg")}
    for path in answer["figures"]:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**6) or []) > 20
    svg = (tmp_path / "r" / "figures" / "timm-tiny-classes.svg").read_text()
    assert ">bee<" in svg.replace(" ", "").replace("\n", ""), "text stays text"


def test_the_page_of_others_is_not_overwritten_and_ours_is(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("mine")
    with pytest.raises(ValueError, match="not a report of uhkd"):
        uhkd.report(runs=[run])
    (run / "report.html").unlink()
    for _ in range(2):
        assert uhkd.report(runs=[run])["page"] == run / "report.html"
    assert json.loads((run / "result.json").read_text()), "the run is as it was"
    other = write_run(tmp_path / "later" / "other")
    assert uhkd.report(runs=[run, other])["page"] == tmp_path / "report.html"  # beside them, wherever it was called


def test_settings_tried_by_a_comparison_are_left_out_and_told(tmp_path: Path):
    write_run(tmp_path / "all/pair/uhkd/seed-0")
    write_run(tmp_path / "all/tune/pair/uhkd/setting-0", seed=1000)
    (tmp_path / "all/compare.yaml").write_text("title: All of it\n")
    answer = uhkd.report(runs=[tmp_path / "all"])
    assert answer["runs"] == ["seed-0"] and "1 tuning run left out" in answer["notes"][0]
    assert [run.name for run in read_runs([tmp_path / "all/tune"])[0]] == ["setting-0"]
    assert "<h1>All of it</h1>" in answer["page"].read_text(encoding="utf-8")


def test_gains_confusions_agreement_and_frequencies_by_hand(compared: Path):
    labels = np.array([0, 0, 1, 1])
    before, after = [np.array([0, 1, 1, 1])], [np.array([0, 0, 1, 0])]
    assert [(g.name, g.points) for g in gains(before, after, labels, ("a", "b"))] == [("a", 50.0), ("b", -50.0)]
    changed = confusion_changes(before, after, labels, ("a", "b"))
    assert [(c.true, c.named, c.before, c.after) for c in changed] == [("a", "b", 1, 0), ("b", "a", 0, 1)]
    values, table = by_frequency(np.array([[1.0, 2.0, 4.0, 9.0]]), np.array([0, 1, 1, 2**0.5]))
    assert values.tolist() == [0.0, 1.0, 1.4] and table.tolist() == [[1.0, 3.0, 9.0]]
    (student_group,) = arrange(read_runs([compared])[0], "").student_groups
    found = agreement(student_group)
    assert found is not None
    names, matrix = found
    at = {name: i for i, name in enumerate(names)}
    assert matrix[at["uhkd"], at["(labels)"]] == pytest.approx(75) and matrix[
        at["teacher"], at["(labels)"]
    ] == pytest.approx(90)
    assert np.array_equal(matrix, matrix.T)


def test_example_images_are_spread_over_the_classes():
    labels = np.repeat(np.arange(8), 5)
    pairs = [(i, i) for i in range(40)]
    assert [labels[image] for _, image in spread(pairs, labels, 4)] == [0, 2, 5, 7]
    assert [labels[image] for _, image in spread(pairs, labels, 10)] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert spread(pairs[:3], labels, 6) == pairs[:3] and spread([], labels, 6) == []


def test_every_command_of_its_tutorial_is_one():
    text = (Path(__file__).parents[2] / "docs/tutorials/read-the-report.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("uhkd report ")]
    assert len(lines) == 2
    for _, verb, *words in lines:
        assert parse(verb, words).model_dump()["runs"]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(colours: dict[str, str]):
    """4.5 to 1 for text (AA), 3 to 1 for lines and bars, on the page and on raised rows."""
    for ground in (colours["paper"], colours["raised"]):
        for name in ("ink", "muted", "link", "good", "bad"):
            assert contrast(colours[name], ground) >= 4.5, name
    for name in (*(f"s{i}" for i in range(8)), "ink"):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    low, high = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in HEAT)
    for share in np.linspace(0, 1, 101):
        fill = "#" + "".join(f"{round(part):02x}" for part in low + (high - low) * share)
        assert contrast(fill, heat_ink(share)) >= 4.5


def contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio of two colours written #rrggbb, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_seeds_of_one_recipe_are_one_group_whoever_was_told_and_however_old_they_are(tmp_path: Path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, log=["tensorboard"], thumbnails=False, shard_cache="/else")
    write_run(
        tmp_path / "c",
        seed=2,
        **{k: v for k, v in DistillRecipe.defaults().items() if k in ("ema_decay", "shuffle_streams")},
    )
    write_run(tmp_path / "d", seed=3, shuffle_streams=4)
    (student_group,) = arrange(read_runs([tmp_path])[0], "").student_groups
    assert [len(group.runs) for group in student_group.groups] == [3, 1]
    assert [words for _, words in differing(student_group)] == ["", "shuffle_streams: 4"]


def test_a_schedule_by_its_older_name_is_the_balance_of_that_name(tmp_path: Path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, weights_schedule="constant")
    write_run(tmp_path / "c", seed=2, balance="constant", balance_settings={})
    write_run(tmp_path / "d", seed=3, weights_schedule="cosine")
    write_run(tmp_path / "e", seed=4, balance="cosine", balance_settings={})
    write_run(tmp_path / "f", seed=5, balance="linear", weights_schedule="cosine")  # nobody wrote that
    (student_group,) = arrange(read_runs([tmp_path])[0], "").student_groups
    assert [[run.name for run in group.runs] for group in student_group.groups] == [["a", "b", "c"], ["d", "e"], ["f"]]
    assert [words for _, words in differing(student_group)][:2] == ["", "balance: cosine"]


def config_fields(run: Path, **changes: object) -> None:
    """Change what a finished run says of itself."""
    RunFolder(run).write_json("result.json", RunFolder(run).read_result() | changes)


@pytest.mark.parametrize(
    "words",
    [
        {"teacher": ["timm/huge", "timm/wide"]},
        {"teacher": None, "teachers": [{"teacher": "timm/huge"}, {"teacher": "timm/wide"}]},
    ],
)
def test_several_teachers_have_a_row_each_and_are_named(words: dict[str, object], tmp_path: Path):
    run = write_run(tmp_path / "two", **words)
    told = [
        {"teacher": "timm/huge", "teacher_metrics": {"accuracy": 0.9}},
        {"teacher": "timm/wide", "teacher_metrics": {}},
    ]
    config_fields(run, teacher="timm/huge and timm/wide", teachers=told, teacher_metrics={})
    write_run(tmp_path / "alone", method="scratch")
    (student_group,) = arrange(read_runs([tmp_path])[0], "").student_groups
    rows = {row.label: row for row in summary_rows(student_group, set())}
    assert rows["teacher timm/huge"].cells[1].text == "90.0"
    assert rows["teacher timm/wide"].cells[1].text == "not recorded" and "teacher" not in rows
    assert ", its teachers timm/huge 90.0 % and timm/wide (accuracy not recorded): +0.0 points" in summary_sentence(
        student_group
    )
    page = page_of(tmp_path, out=tmp_path / "page.html")
    assert "teacher timm/wide" in page.text


def test_an_accuracy_by_a_probe_says_so_and_stands_beside_the_untrained_student(tmp_path: Path):
    run = write_run(tmp_path / "run", accuracy=0.5, unlabelled=True, probe_data="pets", probe="knn")
    config_fields(run, probe={"kind": "knn", "data": "pets", "classes": 4, "start": 0.2, "by": "k-NN on pets"})
    page = page_of(run, out=tmp_path / "page.html")
    said = "uhkd classifies 50.0 % of the validation images correctly by k-NN on pets: +30.0 points against the untrained student"
    assert f"{said} (20.0 %)." in page.text and "Its teacher is timm/huge." in page.text
    assert "50.0 by k-NN on pets" in page.text and "untrained student" in page.text
    assert "--method scratch" not in page.text and "not run" not in page.text


def test_a_run_without_labels_or_judge_tells_its_likeness(tmp_path: Path):
    folder = RunFolder(write_run(tmp_path / "run", unlabelled=True))
    rows = [{"step": 1, "epoch": 1, "loss": 1.0, "val_agreement": 0.75, "val_feature_error": 0.5}]
    folder.write_metrics(rows)
    page = page_of(folder.path, out=tmp_path / "page.html")
    assert (
        "uhkd was trained without labels, and no labelled images evaluate it (--probe-data): 75.0 % agreement"
        in page.text
    )
    assert "feature error 0.500" in page.text and "not been validated" not in page.text


def test_a_seed_counts_once_and_other_lengths_have_no_summary_sentence(tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path / f"uhkd-{seed}", seed=seed, accuracy=0.7)
        write_run(tmp_path / f"scratch-{seed}", method="scratch", seed=seed, accuracy=0.4 + 0.1 * (seed % 2))
    write_run(tmp_path / "uhkd-again", seed=0, accuracy=0.9)
    report = arrange(read_runs([tmp_path])[0], "")
    assert "(3 seeds: a difference)" in summary_sentence(report.student_groups[0]) and "+26.7" in summary_sentence(
        report.student_groups[0]
    )
    assert report.notes == ("uhkd-again: uhkd has an earlier run with its seed, so paired differences leave it out",)
    for seed in range(3):
        folder = RunFolder(tmp_path / f"scratch-{seed}")
        folder.write_metrics(folder.read_metrics()[:1])
    said = summary_sentence(arrange(read_runs([tmp_path])[0], "").student_groups[0])
    assert said.endswith("(3 seeds), but scratch trained 1 epoch, uhkd 3.") and "a difference" not in said


@pytest.mark.parametrize(("seeds", "half"), [(1, None), (2, 12.7062 * 0.5)])
def test_one_or_two_seeds_claim_no_difference(seeds: int, half: float | None):
    found = paired_difference(dict(enumerate([0.9, 0.91][:seeds])), {0: 0.1, 1: 0.1})
    assert found is not None and found.seeds == seeds and found.conclusion == "too few seeds to tell"
    assert found.half == (half if half is None else pytest.approx(half, rel=1e-5))  # t with one degree of freedom


def test_a_run_that_failed_says_why(tmp_path: Path):
    run = write_run(tmp_path / "run", finished=False)
    (run / "metrics.csv").unlink()
    words = {"state": "failed", "why": f"loss is NaN {NASTY}", "step": 3, "total": 9, "epoch": 1, "epochs": 3}
    RunFolder(run).write_json("progress.json", words | {"process": 1, "machine": "m", "time": 1.0})
    page = page_of(run, out=tmp_path / "page.html")
    assert (
        "uhkd has failed: loss is NaN <script>" in page.text and "run: failed (0 of 3 epochs): loss is NaN" in page.text
    )
    assert "not been validated" not in page.text and len(page.all("script")) == 1
    assert "run uhkd 0 failed: loss is NaN" in page.text, "in the table of runs"


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="makes links")
def test_links_out_of_a_run_are_not_followed(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "recipe.yaml").write_text("student: SECRET\nmethod: SECRET\n")
    (secret / "environment.json").write_text('{"key": "SECRET"}')
    run = write_run(tmp_path / "runs" / "run")
    for name in ("recipe.yaml", "environment.json"):
        (run / name).unlink()
        (run / name).symlink_to(secret / name)
    (run / "real.json").write_text((run / "card.json").read_text())
    (run / "card.json").unlink()
    (run / "card.json").symlink_to(run / "real.json")
    page = page_of(run, out=tmp_path / "page.html")
    assert "SECRET" not in page.text and "environment.json: is a link out of the run folder" in page.text
    assert "recipe.yaml: is a link out" in page.text and "card.json: " not in page.text
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "figures").symlink_to(secret)
    with pytest.raises(ValueError, match="is a link to another place"):
        uhkd.report(runs=run, out=tmp_path / "page", figures=True)
    assert sorted(p.name for p in secret.iterdir()) == ["environment.json", "recipe.yaml"]


def test_a_folder_that_cannot_be_read_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "runs" / "whole")
    (tmp_path / "runs" / "locked").mkdir()
    listed = os.scandir

    def refused(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    runs, notes = read_runs([tmp_path / "runs"])
    assert len(runs) == 1 and notes == [f"{tmp_path / 'runs' / 'locked'} could not be read: Permission denied"]


def test_ticks_are_told_apart_and_epochs_are_whole():
    def ticks(xs: list[float], ys: list[float], log: bool = False) -> tuple[list[str], list[str]]:
        drawn = inline(Curves("", "", "", (Line("a", xs, ys, "s0"),), log=log), "", "key")
        found = re.findall(r"<text [^>]*text-anchor: (end|middle)[^>]*>([^<]+)<", drawn)
        return [words for side, words in found if side == "middle"], [words for side, words in found if side == "end"]

    epochs, values = ticks([1, 2], [2.281, 2.289])
    assert epochs == ["1", "2"] and len({*values}) == len(values) >= 3
    epochs, values = ticks([1], [0.002])
    assert epochs == ["1"] and 0.002 in map(float, values) and all(0.001 < float(v) < 0.003 for v in values)
    assert "." in ticks([0.0, 1.0, 1.4], [1, 2, 3])[0][1]
    assert ticks([0, 1], [1e-6, 1], log=True)[1] == ["1e-6", "0.0001", "0.01", "1"]
    assert len(ticks([0, 1], [0.12, 0.6], log=True)[1]) >= 2, "less than a decade has ticks too"


def test_a_panel_has_colours_as_variables_series_as_groups_and_ids_of_its_own():
    lines = (
        Line("a & b", [1, 2], [1, 2], "s3", band=([0, 1], [2, 3]), group="g0"),
        Line("#1d4ed8", [1, 2], [2, 1], "s1", group="g1"),
        Line("now", [1, 2], [2, 1], "s0", frame=4),
    )
    one, two = (inline(Curves("#1d4ed8", "", "", lines), "words", key, {"g1"}) for key in ("one", "two"))
    assert one == inline(Curves("#1d4ed8", "", "", lines), "words", "one", {"g1"}), "the same every time"
    ids = [re.findall(r' id="([^"]+)"', text) for text in (one, two)]
    assert ids[0] and not {*ids[0]} & {*ids[1]}
    assert {*re.findall(r"#([^\s\")]+)\)", one)} <= {*ids[0]}, "references within the panel"
    assert re.findall(r"#[0-9a-f]{6}", one) == ["#1d4ed8"] * 2, "the panel's title and the line's: text is no colour"
    assert len(re.findall('<g data-group="g0"><title>a &amp; b</title>', one)) == 2, "line and band"
    assert '<g data-group="g1" hidden><title>' in one and '<g data-frame="4"><title>now</title>' in one
    assert "stroke: var(--s3)" in one and "fill: var(--s3)" in one and "<style" not in one


def test_long_names_of_rows_can_be_told_apart():
    name = "leaf of a wheat plant with rust, stage"
    rows = tuple(Bar(f"{name} {i} → {name} {i + 1}", ((1.0, "s0", "1"), (2.0, "s1", "2"))) for i in (1, 2))
    for drawn in (inline(Bars("", "", rows), "", "key"), images(["svg"], [Bars("", "", rows)])[0].decode()):
        lines = [line for line in re.findall(r">([^<>]+)</text>", drawn) if "leaf" in line]
        assert len(lines) == 4 and [line[-1] for line in lines] == ["1", "2", "2", "3"]
        assert [line.startswith("→") for line in lines] == [False, True] * 2


def test_titles_stay_within_their_figure():
    title = "Accuracy of a student with quite a long name in words"
    drawn = inline(Bars(title, "", (Bar("a", ((1.0, "s0", "1"),)),)), "", "key")
    (found,) = re.findall(r"<text ([^>]*)>Accuracy[^<]+</text>", drawn)
    assert re.search(r"translate\(4 |x=\"4\"|translate\(4\.0* ", found), "begins at the left edge"
    drawn = images(["svg"], [Curves(title * 2, "", "", ())], title * 2)[0].decode()
    lines = [line for line in re.findall(r">([^<>]+)</text>", drawn) if "student" in line or "words" in line]
    assert len(lines) >= 4 and max(map(len, lines)) <= 340 / 7.5


def test_rows_are_hidden_with_their_names_and_cells_are_text():
    rows = (Bar("uhkd", ((0.5, "s0", "half"),), (0.4, 0.6), group="g0"), Bar("teacher", ((float("nan"), "ink", ""),)))
    drawn = inline(Bars("", "", rows, as_dots=True), "", "key")
    parts = re.findall(r'<g data-group="g0"><title>uhkd</title>(.*?)</g>', drawn)
    assert len(parts) >= 4 and "uhkd</text>" in parts[0] + parts[-1] and "half</text>" in "".join(parts)
    drawn = inline(Heat("", "", "", ("r",), ("b", "c"), [[float("nan"), 7.0]], 0.0, 1.0), "", "key")
    assert ">-</text>" in drawn and ">7.00</text>" in drawn and "data:image/png;base64," in drawn


def test_files_leave_out_what_a_slider_shows_and_come_in_every_kind():
    line = Line("last", [1, 2], [1, 2], "s0")
    panel = Curves("", "epoch", "", (line, Line("now", [1, 2], [2, 1], "s1", frame=0)))
    png, svg, pdf = images(["png", "svg", "pdf"], [panel], "Title", (("last", "s0", 0, None),))
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF") and b"<?xml" in svg[:10]
    assert LIGHT["s0"] in svg.decode() and LIGHT["s1"] not in svg.decode() and ">Title<" in svg.decode()
