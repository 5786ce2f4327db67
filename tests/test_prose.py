"""Pages for users: short sentences, numbers in tables, plain words (one idea per sentence).

Code, tables, headings and pictures are left out, `code` in a sentence counts as one word. A
sentence that is too long is to be split, and four numbers are to be a table: no rule here asks
for fewer words. docs/lab_notes.md is a notebook and exempt.
"""

import re

import pytest
from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "teachers/README.md"]
PAGES += [path for path in sorted(ROOT.glob("docs/*.md")) if path.name != "lab_notes.md"]

WORDS, NUMBERS = 30, 4  # of a sentence, at most
DENSITY, README_DENSITY = 7, 5  # numbers in 100 words, at most
ODD = (
    r"as yet|but for|beside|anew|comes? to|came to|stands|told|wants|goes on|the likeliest|likewise"
)
ODD += r"|at last|in the end|whoever|strangers?'s?|of its own|to be had|(?<!there )(?:is|are) no"


def paragraphs(text):
    """The prose of a page: each paragraph or item of a list in one line."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    text = re.sub(r"(?m)^> ?", "", text)  # a quoted box is prose
    text = re.sub(r"(?m)^(\||#|!\[|    |\[!).*$", "", text)  # tables, headings, pictures, code
    text = re.sub(r"\]\([^)]*\)", "]", text)  # targets of links
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    found = re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text)
    return list(filter(None, (" ".join(re.sub(r"^\s*\d+\. ", "", p).split()) for p in found)))


def sentences(text):
    parts = (re.split(r"(?<=[.!?:])\W?\s+(?=\W*[A-ZΑ-Ωα-ωÂ]|code|\[)", p) for p in paragraphs(text))
    return [sentence for part in parts for sentence in part]


def words(text):
    return re.findall(r"[^\W\d_][\w'’-]*", text)


def numbers(text):
    """Numbers in figures; those that name a place in the paper, or a list 0.9 / 1.0, are no two."""
    names = r"Tables?|Figures?|Sections?|Equations?|Algorithms?|Appendix|Python|Gymnasium|version"
    text = re.sub(rf"({names}) [\d.]+(( to |, | and |–)\d[\d.]*)*", "name", text)
    text = re.sub(r"[\d.]+( / [\d.]+)+", "1", text)
    return re.findall(r"(?<![\w.-])[−+]?\d(?:[\d,.]*\d)?(?![\w-])", text)


@pytest.mark.parametrize("page", [p for p in PAGES if p.exists()], ids=lambda page: page.name)
def test_prose(page):
    text = page.read_text()
    found = sentences(text)
    assert [s for s in found if len(words(s)) > WORDS] == []
    assert [s for s in found if len(numbers(s)) > NUMBERS] == []
    assert [s for s in found if re.search(rf"\b({ODD})\b", s, re.I)] == []
    prose = " ".join(paragraphs(text))
    density = 100 * len(numbers(prose)) / len(words(prose))
    assert density <= (README_DENSITY if page.name == "README.md" else DENSITY)


def test_no_page_is_forgotten():
    assert {p.name for p in PAGES} >= {"README.md", "how_ppd_works.md", "results.md", "ppd.md"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"This is {'very ' * 30}long.", "words"),
        ("It scored 1, 2.5, 3 M, 4,000 and −5 points.", "numbers"),
        ("Beside it a student comes to its teacher.", "odd"),
        ("> This is a box. It is no place for old words.", "odd"),
        ("- One item.\n- The other\n  wants a word.", "odd"),
    ],
)
def test_faults_are_seen(text, problem):
    found = sentences(text)
    faults = {
        "words": any(len(words(s)) > WORDS for s in found),
        "numbers": any(len(numbers(s)) > NUMBERS for s in found),
        "odd": any(re.search(rf"\b({ODD})\b", s, re.I) for s in found),
    }
    assert [name for name, fault in faults.items() if fault] == [problem]


def test_what_is_no_prose_does_not_count():
    text = "# Beside 1 2 3 4 5\n\n| told 1 | 2 |\n\n```bash\nanew 1 2 3 4 5\n```\n![anew](told)\n"
    assert sentences(text) == []
    assert numbers("Table 3, Section 2, Hopper-v4, 0.99 / 1.00 / 1.01, code") == ["1"]
    assert words("Run code: 18 environments, π_θ.") == ["Run", "code", "environments", "π_θ"]
