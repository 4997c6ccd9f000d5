"""What tyro complains of, as one plain line."""

from __future__ import annotations

import re

SAID = (  # tyro's and Python's words, and ours; order matters
    (r"^Error parsing (--[\w.-]+|[A-Z]+): ", r"\1: "),
    (r"^Error parsing [\w.]+: ", ""),
    (r"^Missing value for argument '(--.*?)'.*", r"\1 needs a value"),
)


def one_line(box: str, prog: str) -> str:
    """What tyro drew in a box, as a sentence.

    Args:
        box: As it was printed.
        prog: The command, for what to read next.
    """
    rows = [row.strip("│ ") for row in box.splitlines() if row.startswith("│")]
    rules = [at for at, row in enumerate(rows) if row.startswith("──")] + [len(rows)]
    said = " ".join(rows[: rules[0]])
    for pattern, words in SAID:
        said = re.sub(pattern, words, said)
    if given := re.search(r"(?:instantiated from|arguments:?) \[(.*?)\]", said):
        said = _unfit(said.partition(":")[0], given[1], rows)
    said = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", said)
    said = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", said)
    if missing := re.match(r"Missing value for argument '(\w+)'", said):
        said = _missing([missing[1].upper()])
    if said.startswith("Missing from"):  # names stand in by 4, what they are by 8
        said = _missing(re.findall(r"^│ {5}([^\s│]+)", box.partition("│ ──")[0], re.MULTILINE))
    unknown = re.match(r"Unrecognized (?:options|arguments): ([^\s,=]+)", said)
    if unknown:
        meant = re.search(r"Perhaps you meant:.*?(--[\w.-]+)", " ".join(rows))
        what = "option" if unknown[1].startswith("-") else "place for"
        said = f"no {what} {unknown[1]}" + (f": did you mean {meant[1]}?" if meant else "")
    return f"{said or 'cannot read these arguments'} (`{prog} --help` lists the options)"


def _missing(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def _unfit(option: str, given: str, rows: list[str]) -> str:
    """What an option got that is not of its kind, and what would be right."""
    # Its help begins with its name and kind, such as {None}|INT|{INT INT}.
    kind = next((row for row in rows if row.startswith(f"{option} ")), "").partition(" ")[2]
    number = "whole number" if "INT" in kind else "number"
    values = given.replace("'", "").replace(",", "")
    if "..." in kind:
        wanted = f"{number}s"
    elif kind == "FLOAT FLOAT":
        wanted = f"two {number}s"
    else:
        wanted = f"a {number}"
    if "|{INT INT}" in kind:
        wanted += ", or height and width"
    elif "|{auto,none}" in kind:
        wanted += ", auto or none"
    return f"{option} {values}".rstrip() + f": give {wanted}"
