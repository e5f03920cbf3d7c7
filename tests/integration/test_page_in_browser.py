"""The committed page in headless Chromium: at a phone's width, by keyboard, with axe-core.

`AXE_CORE` names axe-core's script, such as `node_modules/axe-core/axe.min.js` after
`npm install axe-core` in some folder; it is no part of this repository.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, chromium, tab

PAGE = Path(__file__).resolve().parents[2] / "results" / "report" / "index.html"
AXE = os.environ.get("AXE_CORE", "")
UNFOLD = "document.querySelectorAll('details').forEach(each => { each.open = true; })"

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = chromium()
    assert program is not None
    with tab(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window_and_nothing_fails(
    browser: Tab, width: int, dark: bool
) -> None:
    browser.problems.clear()
    browser.open(PAGE.as_uri(), width, dark=dark)
    for unfold in ("0", UNFOLD):
        browser.evaluate(unfold)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert browser.problems == []


def test_a_column_is_sorted_by_keyboard_and_says_so(browser: Tab) -> None:
    browser.open(PAGE.as_uri(), 1280)
    read = (
        "[...document.querySelector('table.sortable').tBodies[0].rows]"
        ".map(row => row.cells[%d].textContent.trim())"
    )
    names = browser.evaluate(
        "[...document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells]"
        ".map(cell => cell.textContent.trim())"
    )
    column = names.index("kv heads")
    before = browser.evaluate(read % column)
    browser.evaluate(
        f"document.querySelector('table.sortable').tHead.rows[0].cells[{column}]"
        ".querySelector('button').focus()"
    )
    state = (
        f"document.querySelector('table.sortable').tHead.rows[0].cells[{column}]"
        ".getAttribute('aria-sort')"
    )
    assert browser.evaluate(state) is None
    numbers = sorted(int(text) for text in before if text.isdigit())
    rest = [text for text in before if not text.isdigit()]
    assert len(numbers) > 2
    browser.press("Enter", 13)
    assert browser.evaluate(state) == "ascending"
    assert browser.evaluate(read % column) == [*map(str, numbers), *rest]
    browser.press("Enter", 13)
    assert browser.evaluate(state) == "descending"
    assert browser.evaluate(read % column) == [*map(str, reversed(numbers)), *rest]


def test_the_first_stop_of_the_keyboard_leads_to_the_answer(browser: Tab) -> None:
    browser.open(PAGE.as_uri(), 360)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#answer"


def test_a_number_leads_to_its_record_and_paper_shows_what_is_folded(browser: Tab) -> None:
    browser.open(PAGE.as_uri(), 1280)
    shown = browser.evaluate(
        "(async () => {"
        " const link = document.querySelector('td > a[tabindex]'); link.click();"
        " await new Promise(done => setTimeout(done, 50));"
        " const lines = document.querySelector(':target');"
        " const box = lines.getBoundingClientRect();"
        " return [lines.id, link.hash, box.top >= 0 && box.top < innerHeight,"
        "   lines.querySelector('code').textContent];"
        "})()"
    )
    assert shown[0] == shown[1][1:]
    assert shown[2]
    assert shown[3].startswith("python -m experiments.rerun ")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") > 5
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0


@pytest.mark.long
@pytest.mark.skipif(not AXE, reason="AXE_CORE names no axe-core")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(browser: Tab, width: int, dark: bool) -> None:
    """WCAG 2.2 AA and axe's best practices, all of the page unfolded."""
    browser.open(PAGE.as_uri(), width, dark=dark)
    browser.evaluate(UNFOLD)
    browser.evaluate(Path(AXE).read_text(encoding="utf-8") + ";0")
    found = browser.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(result =>"
        " [result.passes.length, result.violations.map(each => each.id + ': '"
        " + each.nodes.map(node => node.html.slice(0, 200)).join(' | '))])"
    )
    assert found[0] > 10
    assert found[1] == []
