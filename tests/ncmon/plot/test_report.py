"""A report is one file that holds the run's numbers, fetches nothing and lets no name out of its place."""

from __future__ import annotations

import base64
import dataclasses
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ncmon.bounds import BOUNDS
from ncmon.metrics import METRICS
from ncmon.plot.report import report
from ncmon.store.queries import Store
from ncmon.store.writer import Writer
from tests.factories import make_run

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements, text, and whether every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    with Store.open(made) as store:
        return Page(report(store.run("digits-bn"), version="9.9"))


def test_a_report_holds_every_number_bound_and_assumption(store: Store, page: Page) -> None:
    run = store.run("digits-bn")
    for metric in METRICS:
        if metric.scope in ("layer", "classifier", "window"):
            assert metric.name in page.text
    for bound in BOUNDS:
        assert bound.name in page.text
        for assumption in bound.assumptions:
            assert assumption in page.text
    last = run.readings(split="test")[0].layers["classifier-input"].readings["nc1_pinv"].value
    assert f"{last:.4g}" in page.text
    for part in ("weight_decay", "0.0005", "blocks.0", "sweep", "ncmon 9.9", "estimate"):
        assert part in page.text
    pictures = [attributes["src"] or "" for tag, attributes in page.found if tag == "img"]
    assert len(pictures) == 5
    for source in pictures:
        head, _, content = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(content)).tag.endswith("svg")


def test_nothing_is_fetched_and_nothing_runs(page: Page) -> None:
    tags = {tag for tag, _ in page.found}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    for _, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "href" not in attributes


def test_a_hostile_name_stays_in_its_place(store: Store) -> None:
    run = store.run("digits-bn")
    evil = "<script>alert(1)</script>\x1b[2J\"'&"
    fields = {"name": evil, "config": {evil: {evil: evil}}, "tags": (evil,), "class_names": (evil,) * 4}
    run.run = dataclasses.replace(run.run, **fields, note=evil, host=evil, client=evil)
    text = report(run, version="1")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.found}
    assert page.text.count("<script>alert(1)</script>") > 8
    assert "\x1b" not in text


def test_a_run_without_windows_has_a_report_too(tmp_path: Path) -> None:
    with Writer.open(tmp_path / "t.db") as writer:
        writer.put_run(make_run(run_id="empty"), b"s" * 16, now=1.0)
    with Store.open(tmp_path / "t.db") as store:
        page = Page(report(store.run("empty"), version="1"))
    assert "No window yet" in page.text
    assert page.text.count("no window yet, nothing to draw") == 5
    assert "No picture of" in page.text
