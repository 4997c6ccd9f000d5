"""Tables of the documentation are rendered as tables."""

import re
from html.parser import HTMLParser

import markdown
import pytest

from tests.unit.docs.pages import PAGES, page_name, prose

CODE_SPAN = re.compile(r"(`+).+?\1")


class Rows(HTMLParser):
    """Count the rows of tables, and collect the text outside of them."""

    def __init__(self):
        super().__init__()
        self.rows, self.depth, self.outside = 0, 0, ""

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self.depth += tag == "table"

    def handle_endtag(self, tag):
        self.depth -= tag == "table"

    def handle_data(self, data):
        if not self.depth:
            self.outside += data


def table_lines(text):
    """Return number and text of each line that is meant as a row of a table."""
    return [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith("|")
    ]


def cells(line):
    """Return the number of cells in a row. A pipe in a code span or after a backslash is text."""
    return CODE_SPAN.sub("", line.replace(r"\|", "")).count("|") - 1


def is_rule(line):
    """Whether a row is the line between a table's head and body."""
    return set(line) <= set("|-: ")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_row_is_rendered_inside_a_table(page):
    text = prose(page)
    rendered = Rows()
    rendered.feed(markdown.markdown(text, extensions=["tables"]))
    rows = [line for _, line in table_lines(text) if not is_rule(line)]
    assert rendered.rows == len(rows)
    assert not [line for line in rendered.outside.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_rows_of_a_table_have_equally_many_cells(page):
    last, width = 0, 0
    for number, line in table_lines(prose(page)):
        assert line.endswith("|"), f"{page.name}:{number}: a row ends with |"
        if number != last + 1:
            width = cells(line)
        assert cells(line) == width, f"{page.name}:{number}"
        last = number


def test_a_blank_line_inside_a_table_is_noticed():
    broken = "| a |\n|---|\n| b |\n\n| c |\n"
    rendered = Rows()
    rendered.feed(markdown.markdown(broken, extensions=["tables"]))
    assert rendered.rows == 2


def test_there_are_tables_to_render():
    assert sum(len(table_lines(prose(page))) for page in PAGES) > 300
