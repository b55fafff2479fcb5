"""Documents: the exact Markdown, the page as a parser of HTML reads it, and as a browser without a head shows and sorts it."""

import html
import html.parser
import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest

import genmod as gm
from experiments import density_table, flow_matching_table
from genmod.lab import Cell, Document, Figure, Heading, Reason, Table, Text

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
HOSTILE = "<script>window.broken = 1</script> | *a* &lt; \"q' _x_"


def png(path, width=3, height=2):
    """A black image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress((b"\0" + b"\0" * width) * height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b""))
    return path


def table(rows, columns=("model", "NLL (nats)", "family"), **options):
    return Table(columns, rows, **options)


MODELS = table(
    (
        ("real_nvp", gm.lab.number(1.25, 0.0125), "flow"),
        ("nsf", gm.lab.number(-0.5, 0.0125, best=True), "flow"),
        ("gan", "", "adversarial"),
        ("m10", gm.lab.number(-10.0), "Latent"),
        ("m2", gm.lab.number(float("nan")), "latent"),
        ("rbm | <b>", Reason("wants bits | not reals")),
    ),
    caption="Test NLL.",
)


# --- Markdown ----------------------------------------------------------------------------------------------------------------


def test_markdown_is_exact(tmp_path):
    figure = Figure(png(tmp_path / "a figure.png"), alt="draws [left]", caption="Draws.")
    document = Document("Every model", (Text("One\nparagraph.\n\n \n\nAnother."), Heading("two_moons"), MODELS, figure))
    assert gm.lab.markdown(document, tmp_path / "sub") == "\n".join(
        [
            "# Every model",
            "",
            "One paragraph.",
            "",
            "Another.",
            "",
            "## two_moons",
            "",
            "Test NLL.",
            "",
            "| model | NLL (nats) | family |",
            "| --- | ---: | --- |",
            "| real_nvp | 1.2500 +- 0.0125 | flow |",
            "| nsf | **-0.5000 +- 0.0125** | flow |",
            "| gan |  | adversarial |",
            "| m10 | -10.0000 | Latent |",
            "| m2 | nan | latent |",
            r"| rbm \| \<b> | *wants bits \| not reals* |  |",
            "",
            r"![draws \[left\]](../a%20figure.png)",
            "",
            "Draws.",
        ]
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b __init__ _x_ a*b `c` ~d~ $e$ \\", r"a_b \_\_init\_\_ \_x\_ a\*b \`c\` \~d\~ \$e\$ " + "\\\\"),
        ("[l](u) <b> a|b &lt; &#60; R&D", r"\[l\](u) \<b> a\|b \&lt; \&#60; R&D"),
        ("- l", r"\- l"),
        ("---", r"\---"),
        ("-1.5 nats", "-1.5 nats"),
        ("12. x", r"12\. x"),
        ("1.5 x", "1.5 x"),
        ("> q", r"\> q"),
        ("# h #", r"\# h \#"),
        ("C# 3", "C# 3"),
    ],
)
def test_markdown_escapes_what_would_be_read_as_more(text, written):
    assert gm.lab.markdown(Text(text)) == written


def test_a_column_of_numbers_has_a_value_or_is_empty():
    one = Table(("a", "b", "c", "d"), (("1", "", Cell("2", 2), "3"), ("x", "", "none", Reason("why"))))
    assert one.numeric == (False, True, True, False)
    assert Table(("a",), ()).numeric == (False,)


def test_tables_of_experiments():
    found = {
        "data": "two_moons",
        "model": "nsf_ar",
        "num_params": 12345,
        "num_test": 1000,
        "nll_nats": -0.5,
        "nll_nats_sem": 0.25,
    }
    assert density_table.markdown([(found, 12.4)]) == (
        "### two_moons: no exact limit known, 1,000 test points\n\n"
        "| model | parameters | test NLL (nats) | seconds (wall) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| nsf_ar | 12,345 | -0.5000 +- 0.2500 | 12 |"
    )
    names = ("w2", "w2_floor", "npe", "straightness", "nfe", "w2_euler_1", "w2_euler_8")
    runs = [dict.fromkeys(names, value) for value in (0.25, 0.75)]
    lines = flow_matching_table.markdown("normal_moons", {"otcfm": runs, "distilled": runs}).splitlines()
    mean = "0.500 +- 0.354"
    assert lines[1:] == [
        "| --- |" + " ---: |" * 8,
        f"| otcfm | {mean} | 0.500 | {mean} | {mean} | 0 | {mean} | {mean} | .130, .083 |",
        f"| distilled |  |  |  |  |  | {mean} |  |  |",
    ]


# --- HTML --------------------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Fails where an end tag does not match its start; keeps the attributes of each tag and the text in it."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag, name):
        return [attributes[name] for each, attributes in self.tags if each == tag and name in attributes]


@pytest.fixture
def document(tmp_path):
    """Of parts that all hold what would break the page."""
    wide = tuple((f"model_{i}", *(gm.lab.number(float(i * j % 7), 0.125) for j in range(1, 13))) for i in range(40))
    parts = (
        Text(HOSTILE),
        Heading(HOSTILE),
        MODELS,
        Heading("Wide"),
        Table(("model", *(f"score {j}" for j in range(1, 13))), (*wide, (HOSTILE, Reason(HOSTILE * 4))), caption=HOSTILE),
        Heading("wide!", 3),
        Figure(png(tmp_path / "wide.png", 900, 2), alt=HOSTILE, caption=HOSTILE),
    )
    return Document(HOSTILE, parts)


def test_the_page_is_well_formed_and_asks_for_nothing(document):
    page = gm.lab.page(document)
    reader = Reader(page)
    assert len(reader.text["script"]) == 1 and len(reader.all("meta", "charset")) == 1
    identities = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(set(identities)) == 3 and {f"#{name}" for name in identities} == set(reader.all("a", "href"))
    assert all(source.startswith("data:image/png;base64,") for source in reader.all("img", "src"))
    assert reader.all("link", "href") == ["data:,"] and "url(" not in page and "//" not in re.sub('base64,[^"]*', "", page)
    assert reader.all("img", "alt") == [HOSTILE] and reader.text["h1"] == [HOSTILE] and HOSTILE in reader.text["p"]
    assert (reader.all("img", "width"), reader.all("img", "height")) == (["900"], ["2"])


def test_equal_documents_give_equal_pages(document, tmp_path):
    again = Document(document.title, (*document.parts[:-1], Figure(tmp_path / "wide.png", alt=HOSTILE, caption=HOSTILE)))
    assert again == document
    assert gm.lab.page(again) == gm.lab.page(document) and gm.lab.markdown(again) == gm.lab.markdown(document)


def test_a_table_of_contents_wants_two_headings():
    assert "<nav" not in gm.lab.page(Document("t", (Heading("a"), Text("b"))))
    page = gm.lab.page(Document("t", (Text("b"), Heading("a", 3), Heading("A"), Heading("!"))))
    assert Reader(page).all("a", "href") == ["#a", "#a-2", "#section"]
    assert page.index("<p>") < page.index("<nav") < page.index("<h3")


def test_an_error_stands_apart_from_its_number():
    page = gm.lab.page(Document("t", (MODELS,)))
    assert '<td class="num" data-value="1.25">1.2500 <span>\u00b1 0.0125</span></td>' in page
    assert '<td class="num best" data-value="-0.5">' in page and '<td class="num">nan</td>' in page
    assert '<td class="reason" colspan="2"><span>wants bits | not reals</span></td>' in page


# --- in a browser --------------------------------------------------------------------------------------------------------------

# A browser may refuse windows as narrow as a telephone: the page stands in a frame of 390 x 844.
OUTER = """<!DOCTYPE html><iframe style="border: 0; width: 390px; height: 844px" srcdoc="{page}"></iframe><pre></pre><script>
addEventListener("load", () => {{
  const window = frames[0], page = window.document, root = page.documentElement, tables = [...page.querySelectorAll("table")];
  const names = () => [...tables[0].tBodies[0].rows].map(row => row.cells[0].textContent);
  const heads = [...tables[0].tHead.rows[0].cells];
  const sorted = [0, 1, 1, 2, 2].map(column => {{
    const button = heads[column].querySelector("button");
    button.focus();
    page.activeElement.click();
    return [names(), heads.map(head => head.getAttribute("aria-sort")), page.activeElement === button];
  }});
  const box = tables[1].parentElement;
  box.scrollTo(200, 300);
  const [corner, first] = [tables[1].tHead.rows[0].cells[0], tables[1].tBodies[0].rows[20].cells[0]];
  const at = element => element.getBoundingClientRect();
  document.querySelector("pre").textContent = JSON.stringify({{
    sorted,
    page: [root.clientWidth, root.scrollWidth],
    box: [box.clientWidth, box.scrollWidth, box.scrollLeft],
    beside: at(first).left - at(box).left,
    under: at(corner).top - at(box).top - box.clientTop,
    figure: [page.images[0].naturalWidth, page.images[0].clientWidth <= root.clientWidth],
    broken: "broken" in window,
    asked: window.performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  }});
}});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, google-chrome or chromium-browser on the path")
def test_in_a_browser(document, tmp_path):
    path = tmp_path / "outer.html"
    path.write_text(OUTER.format(page=html.escape(gm.lab.page(document))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    dom = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1]))
    last, up, down = "rbm | <b>", "ascending", "descending"
    assert found["sorted"] == [
        [["gan", "m2", "m10", "nsf", last, "real_nvp"], [up, None, None], True],
        [["m10", "nsf", "real_nvp", "gan", "m2", last], [None, up, None], True],
        [["real_nvp", "nsf", "m10", "gan", "m2", last], [None, down, None], True],
        [["gan", "real_nvp", "nsf", "m2", "m10", last], [None, None, up], True],
        [["m10", "m2", "real_nvp", "nsf", "gan", last], [None, None, down], True],
    ]
    assert 300 < found["page"][0] <= 390 and found["page"][1] == found["page"][0], "the page scrolls sideways"
    assert found["box"][1] > found["box"][0] and found["box"][2] == 200, "a wide table scrolls in its box"
    assert abs(found["beside"]) < 1 and abs(found["under"]) < 1, "the first column and the head stay in sight"
    assert found["figure"] == [900, True] and not found["broken"] and found["asked"] == []


# --- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: table((("a", "b", "c"), ("a", "b"))), ValueError, r"rows\[1\] must have 3 entries, .* got 2"),
        (lambda: table((("a", "b", "c", Reason("r")),)), ValueError, r"rows\[0\] must have 3 entries, .* got 4"),
        (lambda: table((("a", Reason("r"), "c"),)), ValueError, r"rows\[0\] must end with its Reason, got 1 entries after it"),
        (lambda: table((("a", 1.5, "c"),)), TypeError, r"rows\[0\]\[1\] must be a str, a Cell or a Reason, got float"),
        (lambda: table((), columns=()), ValueError, "columns must name at least one column, got none"),
        (lambda: table((), columns=("a", 2)), TypeError, r"columns\[1\] must be a str, got int"),
        (lambda: Cell("x", float("inf")), ValueError, "value must be finite or None, got inf; gm.lab.number"),
        (lambda: Cell("x", "1"), TypeError, "value must be a number or None, got str"),
        (lambda: Reason(" "), ValueError, "text must say something, got ' '"),
        (lambda: Heading("a", 1), ValueError, "level must be an integer from 2 to 6, got 1; the title"),
        (lambda: Text(3), TypeError, "text must be a str, got int"),
        (lambda: Document("", ()), ValueError, "title must say something, got ''"),
        (
            lambda: Document("a", (Text("b"), "c")),
            TypeError,
            r"parts\[1\] must be a Text, a Heading, a Table or a Figure, got str",
        ),
        (lambda: Figure("nowhere.png", alt="a"), ValueError, "path must name a PNG file, got 'nowhere.png', which is none; draw"),
        (
            lambda: Figure(__file__, alt="a"),
            ValueError,
            "path must name a PNG file, got .*test_lab_report.py', which does not begin",
        ),
        (lambda: Figure(__file__, alt=""), ValueError, "alt must say something, got ''"),
    ],
)
def test_what_cannot_be_written_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
