"""The page of a table with a row per example: what is in it, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from page import page_of

from prl_keras.epsilon.intervals import EpsilonEstimate
from prl_keras.reports.report import report_elements, report_examples

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<img src=x onerror="attacked = 1">', "'\"><script>attacked = 1</script>", "cat & dog"
N = 80


def table_of(classes=3, flagged=8):
    """A table as `prl_keras.audit` makes it: example 79 is the most suspect, then 78, ..."""
    rng = np.random.default_rng(0)
    score = np.linspace(0, 1, N)
    likely = rng.dirichlet(np.ones(classes), N)
    return pd.DataFrame(
        {
            "score": score, "rank": np.arange(N, 0, -1), "is_flagged": np.arange(N) >= N - flagged,
            "given": np.arange(N) % classes, "predicted": (np.arange(N) // 2) % classes, "loss": score,
            "given_probability": 1 - score, **{f"probability_{i}": p for i, p in enumerate(likely.T)},
            "times_seen": 5, "times_dropped": 3, "first_dropped": 1.0, "last_dropped": 4.0,
        },
        index=pd.RangeIndex(N, name="example"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    cells = pd.DataFrame({"size": np.arange(N) / 7, EVIL[0]: [EVIL[i % 3] for i in range(N)]})
    return report_examples(
        table_of(), folder / "report.html", EpsilonEstimate(0.1, 0.0, 0.3),
        np.random.default_rng(0).uniform(size=(N, 4, 5, 3)), EVIL, [f"{EVIL[0]}/{i}.png" for i in range(N)],
        "file", cells, 1, f"Labels of {EVIL[1]}", f"From {EVIL[1]}", [("Left out", EVIL[1])],
    )  # fmt: skip


class TestPage:
    def test_has_the_most_suspect_first_without_a_script(self, path):
        page = page_of(path)
        rows = re.findall("<tr class='item'.*?</tr>", page.content)
        assert len(rows) == 50 and page.tags.count("img") == 52  # and the scores and the classes
        for at, row in enumerate(rows):
            assert html.unescape(re.search("data-id='(.*?)'", row)[1]) == f"{EVIL[0]}/{N - 1 - at}.png"
            assert f"<td class='far'>{at + 1}</td>" in row and "60%" in row
            assert ("<b>yes</b>" in row) == (at < 8)
        for words in ("10%", "90% interval 0% to 30%", "8 labels are flagged", "Class by class", "Left out"):
            assert words in page.text

    @pytest.mark.parametrize("estimate, words", [
        ((0.1, 0.05, 0.15), []),
        ((0.1, 0.0, 0.15), ["begins at 0"]),
        ((0.2, 0.1, 0.31), ["is wide", "trusted="]),
        ((0.3, 0.25, 0.4), ["inputs hardly tell the labels"]),
        ((0.35, 0.0, 0.6), ["begins at 0", "is wide", "inputs hardly tell the labels", "trusted="]),
    ])  # fmt: skip
    def test_says_what_the_estimate_cannot_tell(self, tmp_path, estimate, words):
        text = page_of(report_examples(table_of(), tmp_path / "a.html", EpsilonEstimate(*estimate))).text
        every = ("begins at 0", "is wide", "inputs hardly tell the labels", "trusted=")
        assert [each for each in every if each in text] == words

    def test_doubts_of_the_caller_stand_for_its_own(self, tmp_path):
        estimate = EpsilonEstimate(0.35, 0.0, 0.6)
        text = page_of(report_examples(table_of(), tmp_path / "a.html", estimate, doubts=[EVIL[0]])).text
        assert EVIL[0] in text and "trusted=" not in text and "begins at 0" not in text

    def test_names_are_text_and_not_html(self, path):
        content = path.read_text()
        assert "<img src=x" not in content and "<script>attacked" not in content
        assert content.count("<script>") == 2 and content.count("onerror=&quot;") > 50

    def test_shows_all_that_are_flagged_up_to_500(self, tmp_path):
        page = page_of(report_examples(table_of(flagged=70), tmp_path / "report.html"))
        assert page.content.count("class='item'") == 70 and "as audit was told" in page.text

    def test_of_targets(self, tmp_path):
        table = table_of().drop(columns=["given", "predicted", "given_probability"])
        table.insert(3, "given_0", np.arange(N) / 3)
        table.insert(4, "predicted_0", np.inf)
        page = page_of(report_examples(table, tmp_path / "report.html"))
        assert "How many targets are wrong" in page.text and "not finite" in page.text
        assert "Class by class" not in page.text and "<select" not in page.content and "26.33" in page.text

    def test_what_does_not_go_with_the_table(self, tmp_path):
        table, output = table_of(), tmp_path / "report.html"
        for options, message in (
            ({"inputs": np.zeros((3, 4, 4, 1))}, "inputs are 3, and the table has 80"),
            ({"ids": [1]}, "ids are 1"),
            ({"class_names": ["a"]}, "class_names are 1, and the table goes up to 2"),
        ):
            with pytest.raises(ValueError, match=message):
                report_examples(table, output, **options)
        with pytest.raises(ValueError, match="is empty"):
            report_examples(table[:0], output)
        with pytest.raises(ValueError, match="report_elements takes it"):
            report_examples(table.set_index("rank", append=True), output)
        with pytest.raises(ValueError, match="must be a file of HTML"):
            report_examples(table, tmp_path)
        assert not list(tmp_path.iterdir())


TOOLS = """
const $ = id => document.getElementById(id)
const items = () => [...document.querySelectorAll(".item")].filter(item => !item.hidden)
const ids = () => items().map(item => item.dataset.id.split("/").pop())
const press = key => (document.activeElement || document.body).dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }))
const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")) }
const search = text => { $("find").value = text; $("find").dispatchEvent(new Event("input")) }
const current = () => document.activeElement.closest(".item")?.dataset.id.split("/").pop() ?? null
const channels = color => color.match(/[\\d.]+/g).map(Number)
const luminance = color => channels(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
const behind = node => {
    for (; node; node = node.parentElement) {
        const color = getComputedStyle(node).backgroundColor
        if ((channels(color)[3] ?? 1) > 0) return color
    }
    return "rgb(255, 255, 255)"
}
const contrast = () => {
    const ratios = [...document.body.querySelectorAll("*")].filter(node =>
        node.checkVisibility() && !["SCRIPT", "OPTION"].includes(node.tagName)
        && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
    .map(node => [luminance(getComputedStyle(node).color), luminance(behind(node))].sort((a, b) => b - a))
    .map(([light, dark]) => (light + 0.05) / (dark + 0.05))
    return Math.min(...ratios)
}
"""
VISIT = """
const facts = { attacked: typeof attacked !== "undefined" }
facts.broken = [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length
facts.wide = document.documentElement.scrollWidth > innerWidth
facts.unlabelled = [...document.querySelectorAll("input, select, button")].filter(
    each => !each.labels?.length && !each.textContent.trim() && !each.ariaLabel).length
facts.landmarks = ["header", "main", "h1"].map(tag => document.querySelectorAll(tag).length)
document.activeElement.blur()
facts.keys = ["j", "j", "ArrowDown", "k"].map(key => { press(key); return current() })
press("x")
facts.ticked = $("status").textContent
let copied = null
Object.defineProperty(navigator, "clipboard", { value: { writeText: async text => { copied = text } } })
press("c"); await null; await null
facts.copiedTicked = copied
press("x")
$("keys").checked = false; press("j"); facts.keysOff = current(); press("ArrowDown"); facts.arrow = current()
$("keys").checked = true
press("/"); facts.searching = document.activeElement.id
press("j"); search("79.png"); facts.found = ids()
press("Escape"); facts.back = current()
search(""); choose("given", "=" + items()[0].dataset.given)
facts.given = ids(); facts.shown = $("status").textContent
choose("predicted", "=" + items()[0].dataset.predicted); facts.both = ids()
$("copy").click(); await null; await null
facts.copied = copied.split("\\n")
choose("given", ""); choose("predicted", "")
const heads = [...document.querySelectorAll("th[aria-sort]")]
const head = name => heads.find(each => each.textContent.trim() === name)
const sort = name => head(name).querySelector("button").click()
sort("size"); facts.smallest = ids()[0]; facts.sorts = heads.map(each => each.ariaSort)
sort("size"); facts.largest = ids()[0]; facts.sorted = head("size").ariaSort
sort("given"); facts.first = items()[0].dataset.given
navigator.clipboard.writeText = async () => { throw new Error("not allowed") }
document.execCommand = () => false
search("79.png"); $("copy").click(); await new Promise(done => setTimeout(done, 50))
facts.byHand = document.querySelector("textarea").value.split("/").pop(); facts.says = $("status").textContent
search("")
const page = () => getComputedStyle(document.body).backgroundColor
facts.light = [page(), contrast()]; $("theme").click(); facts.dark = [page(), contrast()]
document.documentElement.className = ""
facts.withoutScript = getComputedStyle($("find").closest(".tools")).display
"""


def visit(page, folder, script, *flags):
    """What a script finds out in a browser that shows the page."""
    script = f"onload = async () => {{ {TOOLS} {script}; document.title = JSON.stringify(facts) }}"
    script = f"<script>{script}</script>"
    (folder / "check.html").write_text(page.read_text().replace("</head>", script + "</head>"))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--virtual-time-budget=5000", *flags]
    done = subprocess.run(
        [*command, "--dump-dom", (folder / "check.html").as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))


@pytest.mark.skipif(not BROWSER, reason="needs Chromium or Chrome on the PATH")
class TestBrowser:
    @pytest.fixture(scope="class")
    def facts(self, path, tmp_path_factory):
        return visit(path, tmp_path_factory.mktemp("browser"), VISIT, "--window-size=1200,900")

    def test_shows_all_and_runs_no_script_of_a_label(self, facts):
        assert facts["broken"] == 0 and not facts["attacked"] and not facts["wide"]

    def test_keys_go_through_the_suspects(self, facts):
        assert facts["keys"] == ["79.png", "78.png", "77.png", "78.png"]
        assert facts["keysOff"] == "78.png" and facts["arrow"] == "77.png"
        assert facts["searching"] == "find" and facts["back"] == "79.png"

    def test_search_and_choices_filter(self, facts):
        assert facts["found"] == ["79.png"]
        given = [i for i in range(N - 1, N - 51, -1) if i % 3 == (N - 1) % 3]
        assert facts["given"] == [f"{i}.png" for i in given]
        assert facts["shown"] == f"{len(given)} of 50 shown, 0 ticked"
        both = [i for i in given if i // 2 % 3 == (N - 1) // 2 % 3]
        assert facts["both"] == [f"{i}.png" for i in both]

    def test_names_are_copied(self, facts):
        assert facts["ticked"] == "50 of 50 shown, 1 ticked"
        assert facts["copiedTicked"] == f"{EVIL[0]}/78.png"
        assert [name.split("/")[-1] for name in facts["copied"]] == facts["both"]
        assert facts["byHand"] == "79.png" and "Ctrl+C" in facts["says"]

    def test_columns_sort(self, facts):
        assert facts["smallest"] == "30.png" and facts["largest"] == "79.png"
        assert facts["sorts"].count("ascending") == 1 and facts["sorts"].count("none") > 5
        assert facts["sorted"] == "descending" and facts["first"] == min(EVIL)

    def test_is_accessible_light_and_dark(self, facts):
        assert facts["unlabelled"] == 0 and facts["landmarks"] == [1, 1, 1]
        assert facts["light"][0] == "rgb(255, 255, 255)" and facts["dark"][0] != facts["light"][0]
        assert facts["light"][1] >= 4.5 and facts["dark"][1] >= 4.5  # WCAG 2, level AA
        assert facts["withoutScript"] == "none"

    def test_of_several_labels_for_each_example(self, tmp_path):
        index = pd.MultiIndex.from_product([range(20), range(3)], names=("example", "step"))
        score = np.linspace(0, 1, 60)
        table = pd.DataFrame(
            {"score": score, "rank": np.arange(60, 0, -1), "is_flagged": score > 0.9, "given": 0,
             "predicted": 1, "loss": score, "given_probability": 1 - score,
             "example_score": np.repeat(score[::3], 3),
             "example_rank": np.repeat(np.arange(20, 0, -1), 3)}, index=index,
        )  # fmt: skip
        page = report_elements(table, tmp_path / "steps.html", class_names=EVIL)
        found = visit(
            page, tmp_path,
            "const facts = { attacked: typeof attacked !== 'undefined', wide: "
            "document.documentElement.scrollWidth > innerWidth }; press('j'); press('j'); "
            "facts.at = current(); search('#13'); facts.found = ids(); facts.contrast = contrast()",
            "--window-size=500,900",
        )  # fmt: skip
        assert found["at"] == "18" and found["found"] == ["13"]
        assert not found["attacked"] and not found["wide"] and found["contrast"] >= 4.5
