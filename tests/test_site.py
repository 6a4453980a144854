"""The site of a folder of cards: what it says, and what it does in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, sync_playwright
from shelf import CARDS, COUNT, IMAGE, SCRIPT, hubq, measured, put

from hubq.cards import Card, read_cards, rendered
from hubq.site import build, serving, site

WIDTHS = (400, 800, 1400)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cards."""
    root = tmp_path_factory.mktemp("record") / "cards"
    for name, release in CARDS.items():
        put(root / name, release)
    return root


def test_equal_cards_give_equal_bytes_in_any_order(record: Path) -> None:
    known = read_cards(record)
    assert [one.folder for one in known] == sorted(CARDS)
    assert site(known) == site(known[::-1])


def test_numbers_that_are_none_are_no_losses() -> None:
    release = CARDS["SmolLM2-135M-Instruct"]
    row = measured("gguf:Q8_0", "llama.cpp", kld=(float("nan"), float("nan")))
    broken = replace(release, measurements=(row, *(one for one in release.measurements if one.level != "gguf:Q8_0")))
    files = site([Card("one", broken)])
    told = json.loads(files["cards.json"])["models"][0]["files"]
    assert told[0]["loss"] is None and told[1]["loss"]["value"] == 0.0883
    assert "not measured" in files["index.html"].decode() and "n/a" in files["cards/one/index.html"].decode()


def test_rows_of_no_file_are_references() -> None:
    release = CARDS["SmolLM2-135M-Instruct"]
    floor = measured("floor", "transformers", kld=(0.00032, 0.00002), top1=(0.991, 0.002))
    page = site([Card("one", replace(release, measurements=(*release.measurements, floor)))])
    rows = re.findall(r'<th scope="row">(\w+) <span class="quiet">\(([\w.]+)\)</span>', page["cards/one/index.html"].decode())
    assert rows == [("source", "exact"), ("floor", "transformers")]
    told = json.loads(page["cards.json"])["models"][0]
    assert [row["level"] for row in told["references"]] == ["reference", "floor"] and len(told["files"]) == 3
    assert "floor" not in page["index.html"].decode()


def test_every_plot_of_the_card_is_shown_with_its_words(record: Path) -> None:
    known = read_cards(record)
    files = site(known)
    for one in known:
        plots = [name for name in rendered(one.release) if name.endswith(".svg")]
        page = files[f"cards/{one.folder}/index.html"].decode()
        shown = re.findall(r'<img src="([\w.]+)" alt="([^"]+)" width="\d+" height="\d+">', page)
        assert sorted(name for name, _ in shown) == sorted(plots)
        assert "loss.svg" in plots or not any("kld" in row.values for row in one.release.measurements)


def test_hostile_text_is_escaped_everywhere(record: Path) -> None:
    for name, content in site(read_cards(record)).items():
        if name.endswith(".html"):
            text = content.decode()
            assert "<script>" not in text and "<img src=x" not in text and "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
            assert "javascript:" not in "".join(re.findall(r'(?:href|src)="([^"]*)"', text))
            assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|49 ab", text)


def test_build_takes_the_place_of_an_older_site_and_of_nothing_else(record: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    told = hubq("cards", "build", "--cards", record, "--out", out, "--json")
    assert json.loads(told.stdout) == {"schema": 1, "status": "ok", "site": str(out), "models": len(CARDS), "files": COUNT}
    made = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert made == site(read_cards(record))
    (out / "cards/gone").mkdir()
    build(record, out)
    assert not (out / "cards/gone").exists()
    (out / "CNAME").write_text("mine")
    told = hubq("cards", "build", "--cards", record, "--out", out)
    assert told.exit_code == 2 and "CNAME" in told.stderr and (out / "CNAME").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


def test_serve_answers_until_it_is_interrupted(record: Path) -> None:
    command = [sys.executable, "-m", "hubq", "cards", "serve", "--cards", str(record), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        told = ""
        while not told.endswith("}\n"):
            told += process.stdout.readline()
        address = json.loads(told)["address"]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}cards.json") as answer:
            assert json.load(answer)["schema"] == 1
        with urllib.request.urlopen(f"{address}cards/Qwen3-0.6B/README.md") as answer:
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        port = address.rstrip("/").rpartition(":")[2]
        taken = hubq("cards", "serve", "--cards", record, "--port", port)
        assert taken.exit_code == 2 and f"port {port}" in taken.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == ""


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. The tests fail, and are not skipped, where there is none: `apt-get install chromium`."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium is installed, and the site is tested in one: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(record: Path) -> Iterator[str]:
    """Where the site is served."""
    with serving(record, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def watched(browser: Browser, address: str) -> Iterator[Any]:
    """Opens pages; in the end none of them may have asked for another host, shown a dialog or written to the console."""
    faults: list[str] = []
    contexts = []

    def route(route: Route) -> None:
        if route.request.url.startswith(address):
            route.continue_()
        else:
            faults.append(f"asked for {route.request.url}")
            route.abort()

    def told(message: ConsoleMessage) -> None:
        faults.append(f"console: {message.text}")

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before its icon came
            faults.append(f"failed: {request.url}")

    def opened(path: str = "", width: int = 1400, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", told)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("requestfailed", failed)
        answer = page.goto(address + path)
        assert answer and answer.status == 200
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def column(page: Page, name: str) -> list[str]:
    """The cells of a column in the rows that are shown."""
    return page.eval_on_selector_all(
        f"#files tbody tr:not([hidden]) .{name}", "cells => cells.map(cell => cell.textContent.trim())"
    )


def numbers(page: Page, name: str) -> list[float]:
    return [
        float(value)
        for value in page.eval_on_selector_all(f"#files td.{name}", "all => all.map(one => one.dataset.value || NaN)")
    ]


@pytest.mark.parametrize("name", ["size", "bits"])
def test_numbers_sort_as_numbers(watched: Any, name: str) -> None:
    page = watched()
    button, head = page.locator(f"#files thead .{name} button"), page.locator(f"#files thead .{name}")
    button.click()
    found = numbers(page, name)
    assert found == sorted(found) and len(found) == COUNT and head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert numbers(page, name) == sorted(found, reverse=True) and head.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("name", ["model", "family", "level"])
def test_words_sort_as_words(watched: Any, name: str) -> None:
    page = watched()
    page.click(f"#files thead .{name} button")
    up = column(page, name)
    page.click(f"#files thead .{name} button")
    assert column(page, name)[0] == up[-1] and sorted(column(page, name)) == sorted(up) and len(set(up)) > 1
    if name == "level":
        up = [level.removesuffix(" recommended") for level in up]
        assert up.index("gguf:Q8_0") < up.index("gguf:Q10_X")  # by the numbers in names
    assert page.locator("#files thead [aria-sort]").count() == 1


def test_losses_sort_within_their_measure(watched: Any) -> None:
    page = watched()
    measures = []
    for way in (1, -1):
        page.click("#files thead .loss button")
        rows = page.eval_on_selector_all("#files tbody tr", "rows => rows.map(row => [row.dataset.measure, row.dataset.loss])")
        found: dict[str, list[float]] = {}
        for place, (measure, loss) in enumerate(rows):
            assert measure not in found or rows[place - 1][0] == measure  # together
            found.setdefault(measure, []).append(float(loss or "inf"))
        assert all(losses == sorted(losses, reverse=way < 0) for losses in found.values())
        measures.append(list(found))
    assert measures[0] == measures[1] and len(measures[0]) > 3
    assert column(page, "loss")[-1] == "not measured"
    cosines = [float(loss.split()[0]) for loss in column(page, "loss") if "cosine" in loss]
    assert cosines == [0.9712, 0.9981, 0.99999]  # the least loss, which is last here, is the cosine that is nearest to 1


def test_filters_leave_what_was_asked_for(watched: Any, address: str) -> None:
    page = watched()
    status = page.locator("#count")
    assert status.get_attribute("role") == "status" and status.text_content() == f"{COUNT} files"
    page.select_option("#family", "LlamaForCausalLM")
    assert set(column(page, "family")) == {"LlamaForCausalLM"} and len(column(page, "model")) == 6
    page.fill("#size", "2.1")
    assert len(column(page, "model")) == 5 and status.text_content() == f"5 of {COUNT} files"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("#files tbody tr:visible").count() == 5
    page.select_option("#level", "gguf:Q4_K_M")
    assert [level.split()[0] for level in column(page, "level")] == ["gguf:Q4_K_M"] * 2
    page.fill("#text", "  smolLM2 ")
    assert column(page, "model") == ["SmolLM2-135M-Instruct"]
    page.press("#text", "Enter")
    assert page.url == address
    page.fill("#text", "no such model")
    assert column(page, "model") == [] and status.text_content() == f"0 of {COUNT} files"
    page.click("button[type=reset]")
    page.wait_for_function(f"document.querySelectorAll('#files tbody tr:not([hidden])').length === {COUNT}")


def test_a_bound_of_losses_is_one_of_a_measure(watched: Any) -> None:
    page = watched()
    loss, label = page.locator("#loss"), page.locator("label[for=loss]")
    assert loss.is_disabled()
    options = {one.text_content(): one.get_attribute("value") for one in page.locator("#measure option").all()}
    wikitext = next(value for text, value in options.items() if text == "Mean KLD · llama.cpp · wikitext")
    page.select_option("#measure", wikitext)
    assert len(column(page, "loss")) == 8 and label.text_content() == "Loss: at most"
    loss.fill("0.0153")
    assert all(float(cell.split()[0]) <= 0.0153 for cell in column(page, "loss")) and len(column(page, "loss")) == 4
    page.select_option("#measure", next(value for text, value in options.items() if "cosine" in text))
    assert label.text_content() == "Loss: at least"
    loss.fill("0.99")
    assert len(column(page, "loss")) == 2 and min(float(cell.split()[0]) for cell in column(page, "loss")) >= 0.99


def test_the_keyboard_reaches_all_of_it(watched: Any) -> None:
    page = watched()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    visible = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert visible >= 0
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if seen[-1] == "Size":
            break
    assert seen[:6] == ["text", "family", "level", "size", "measure", "Show all"] and seen[-1] == "Size"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    assert numbers(page, "size") == sorted(numbers(page, "size"))
    page.keyboard.press("Space")
    assert numbers(page, "size") == sorted(numbers(page, "size"), reverse=True)


def test_every_link_of_the_site_leads_somewhere(watched: Any, address: str) -> None:
    page = watched()
    left, seen = [address], set()
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        page.goto(here)
        links = page.eval_on_selector_all("a", "all => all.map(one => one.href)")
        links += page.eval_on_selector_all("img", "all => all.map(one => one.src)")
        for link in {link.partition("#")[0] for link in links}:
            if link.startswith(address):
                assert page.request.get(link).status == 200, link
                left += [link] if link.endswith(("/", ".html")) else []
            else:
                assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+(/blob/main/[\w./-]+)?", link)
    assert len(seen) >= len(CARDS) + 1
    assert page.request.get(f"{address}nothing").status == 404


def test_without_script_all_files_are_there_and_nothing_that_does_nothing(watched: Any) -> None:
    page = watched(java_script_enabled=False)
    assert page.locator("#files tbody tr:visible").count() == COUNT
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    assert page.locator("#files thead th").all_text_contents()[3] == "Size"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(watched: Any, scheme: str) -> None:
    for path in ("", "cards/SmolLM2-135M-Instruct/", "cards/all-MiniLM-L6-v2/", "cards/odd%20%231%20%26%2050%25/"):
        page = watched(path, color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        assert all(page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth > 0)"))
    assert (luminance(colour(page, "background-color")) < 0.1) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "cards/SmolLM2-135M-Instruct/"])
def test_text_stands_out_from_its_ground(watched: Any, scheme: str, path: str) -> None:
    page = watched(path, color_scheme=scheme)
    for name in ("--text", "--quiet", "--link", "--focus", "--good"):
        for ground in ("--ground", "--stripe"):
            assert contrast(variable(page, name), variable(page, ground)) >= 4.5, (name, ground)
    used = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one => one.childNodes.length
        && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
        .map(one => getComputedStyle(one).color)""")
    grounds = [colour(page, "background-color")]
    assert min(contrast(rgb(text), ground) for text in used for ground in grounds) >= 4.5


@pytest.mark.parametrize("path", ["", "cards/SmolLM2-135M-Instruct/", "cards/unmeasured/"])
def test_pages_tell_a_screen_reader_what_is_what(watched: Any, path: str) -> None:
    page = watched(path)
    assert page.get_attribute("html", "lang") == "en" and page.title()
    for control in page.locator("input, select").all():
        assert control.evaluate("one => one.labels.length") == 1
    assert all(name.strip() for name in page.locator("a, button").all_text_contents() if page.locator("a img").count() == 0)
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.locator("main").count() == 1 and page.locator("th:not([scope])").count() == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        for one in page.locator(f"[{name}]").all():
            assert one.get_attribute(name) in ids
    assert (
        page.eval_on_selector_all("*", "all => all.flatMap(one => [...one.attributes]).filter(a => /^on|^style$/.test(a.name))")
        == []
    )


def test_hostile_text_stays_text(watched: Any) -> None:
    for path in ("", "cards/odd%20%231%20%26%2050%25/"):
        page = watched(path)
        assert IMAGE in page.locator("body").text_content()
        assert page.locator("script").count() == (path == "") and page.locator("img[src=x], b, [onerror]").count() == 0
        assert page.locator("a[href^=javascript]").count() == 0
    row = watched().locator("#files tbody tr", has_text=SCRIPT).first
    assert row.get_attribute("data-level") == f"gguf:{SCRIPT}"


def variable(page: Page, name: str) -> tuple[float, ...]:
    """A colour of the style sheet, which is written #rrggbb."""
    value = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
    return tuple(int(value[place : place + 2], 16) for place in (1, 3, 5))


def colour(page: Page, name: str) -> tuple[float, ...]:
    return rgb(page.evaluate(f"getComputedStyle(document.body).getPropertyValue('{name}')"))


def rgb(value: str) -> tuple[float, ...]:
    return tuple(map(float, re.findall(r"[\d.]+", value)[:3]))


def luminance(rgb: tuple[float, ...]) -> float:
    """Relative luminance (www.w3.org/TR/WCAG22, 1.4.3)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# --- the card itself, as the Hub shows Markdown ---

HUB_STYLE = """
:root { color-scheme: light dark }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
body { background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3) }
h1, h2 { padding-bottom: .3em; border-bottom: 1px solid #8886 }
table { display: block; max-width: 100%; width: max-content; overflow: auto; border-collapse: collapse }
th, td { padding: 6px 13px; border: 1px solid #8886 }
pre { padding: 1rem; overflow: auto; background: #8882 } code { font: 85% monospace }
img { max-width: 100% }
"""


def as_html(readme: str) -> str:
    """A card as a page: CommonMark with tables, without raw HTML, as on the Hub."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(readme.split("---\n", 2)[2])
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Card</title><style>{HUB_STYLE}</style><body>{body}"


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "all-MiniLM-L6-v2", "odd #1 & 50%"])
def test_a_card_reads_well_as_a_page(watched: Any, record: Path, address: str, name: str) -> None:
    page = watched()
    page.goto(f"{address}cards/{urllib.parse.quote(name)}/README.md")
    html = as_html((record / name / "README.md").read_text())
    page.route(f"{address}**/card.html", lambda route: route.fulfill(body=html, content_type="text/html"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(f"{address}cards/{urllib.parse.quote(name)}/card.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert all(page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth > 0 && one.alt.length > 10)"))
    assert page.locator("img[src=x], script, b, [onerror], a[href^='javascript']").count() == 0
    assert page.locator("h1").count() == 1 and page.locator("h2").count() > 3
