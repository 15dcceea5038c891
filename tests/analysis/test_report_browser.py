"""Reports in a real browser; skipped where playwright or a Chromium is missing.

pip install 'pemt[browser]', and a Chromium of the system (apt-get install chromium) or of
playwright's own (playwright install chromium).
"""

from __future__ import annotations

import shutil

import pytest

from pemt.analysis.report import files_of, read_run, write_grid_report, write_run_report
from pemt.training import adapt
from tests import tiny
from tests.analysis.pages import EVIL
from tests.bench.cells import row, study, write

playwright = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as play:
        try:
            # without a sandbox: containers have none, and the pages are ours
            started = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run, the same with long names and markup, and a grid that is not finished."""
    place = tmp_path_factory.mktemp("pages")
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
    adapt(
        base, tiny.task(place), experts, method="pemt", shots=4, settings=tiny.settings(),
        folder=place / "run", progress=False,
    ).model.detach()  # fmt: skip
    (place / "run" / "gates").mkdir()  # what `pemt mask` draws
    (place / "run" / "gates.png").rename(place / "run" / "gates" / "masks.png")
    files = read_run(place / "run")
    made = {"run": place / "run.html", "long": place / "long.html", "grid": place / "grid.html"}
    write_run_report(files, made["run"])
    names = [f"expert-with-a-rather-long-name-{i}" + EVIL for i in range(300)]
    row_of = dict.fromkeys(names, 1 / 300)
    results = files.results | {
        "task": "t" * 200,
        "gates": {"by_layer": {f"encoder {i} attention.self.query": row_of for i in range(72)},
                  "mean": row_of, "effective_experts": 300.0},
        "confusion": [[3, 1, 2]] * 2,
        "per_class": {"w" * 150: files.results["per_class"]["bad"],
                      EVIL: files.results["per_class"]["good"]},
    }  # fmt: skip
    errors = [dict.fromkeys(("id", "target", "answer"), EVIL) | {"text": "x" * 900,
                                                                 "probability": 0.9}]  # fmt: skip
    write_run_report(files_of(files.record, results, errors), made["long"])
    cells = [*study(), *row("adapter", [0.6, 0.7], shots=32), *row("probe", [0.5], shots=32)]
    grid = {"tasks": [{"name": "rte"}], "methods": [{"name": "pemt"}], "shots": [16],
            "data_seeds": list(range(9))}  # fmt: skip
    write_grid_report(write(place / "grid", cells, grid=grid), made["grid"])
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["run", "long", "grid"])
def test_it_renders(browser, pages, name, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    page.wait_for_load_state("networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    images = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert images
    assert all(complete and natural > 0 for complete, natural in images)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "[...document.querySelectorAll('section')]"
        ".filter(s => s.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert beyond == 0
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    text, back = (sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) for c in colours)
    assert (text > back) == (scheme == "dark")
    assert abs(text - back) > 400  # of 765: contrast
    page.close()


def test_a_grid_has_another_picture_on_a_phone(browser, pages):
    widths = []
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto(pages["grid"].as_uri())
        widths.append(page.evaluate("document.images[0].naturalWidth"))
        page.close()
    assert widths[0] < 500 < widths[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_of_a_heat_map_can_be_read(browser, pages, scheme):
    """Contrast of at least 3 at every tint (WCAG), over the card's colour."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages["run"].as_uri())
    found = page.evaluate(
        """() => {
          const numbers = text => text.match(/[\\d.]+/g).map(Number);
          const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
            const v = c[i] / 255;
            return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          }, 0);
          const card = numbers(getComputedStyle(document.querySelector('section')).backgroundColor);
          const field = document.querySelector('table.heat td.h');
          const made = [];
          for (let tint = 0; tint <= 1.0001; tint += 0.02) {
            field.style.setProperty('--v', tint);
            field.className = 'h' + (tint > 0.88 ? ' half full' : tint > 0.58 ? ' half' : '');
            const style = getComputedStyle(field);
            const back = numbers(style.backgroundColor);
            const a = back.length > 3 ? back[3] : 1;
            const over = back.slice(0, 3).map((v, i) => a * v + (1 - a) * card[i]);
            const [x, y] = [light(numbers(style.color)), light(over)];
            made.push((Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05));
          }
          return made;
        }"""
    )
    page.close()
    assert len(found) == 51
    assert min(found) > 3
