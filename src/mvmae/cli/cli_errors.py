"""tyro's error messages as one plain line.

tyro prints its errors as boxes, which are read back here. Since 1.0.17 it also has structured
events (`tyro._errors.on_parse_error`), but calls them private and free to change in any release;
the text of the boxes has been more stable, and tests compare every kind of message.
"""

import re

REPLACEMENTS = (  # the order matters: the option's name comes first
    (r"^Error parsing (--[\w.-]+|[A-Z]+): ", r"\1: "),
    (r"^Error parsing [\w.]+: ", ""),
    (r"^Missing value for argument '(--.*?)'.*", r"\1 needs a value"),
)
NOT_A_NUMBER = (  # Python's own messages
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
)


def one_line(box: str, prog: str) -> str:
    """Turn a box into a sentence.

    Args:
        box: As printed.
        prog: The command, for the hint at its help.
    """
    rows = [row.strip("│ ") for row in box.splitlines() if row.startswith("│")]
    rules = [at for at, row in enumerate(rows) if row.startswith("──")] + [len(rows)]
    text = " ".join(rows[: rules[0]])
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    if given := re.search(r"(?:instantiated from|arguments:?) \[(.*?)\]", text):
        text = _wrong_type(text.partition(":")[0], given[1], rows)
    for pattern, replacement in NOT_A_NUMBER:
        text = re.sub(pattern, replacement, text)
    if missing := re.match(r"Missing value for argument '(\w+)'", text):
        text = _missing([missing[1].upper()])
    if text.startswith("Missing from"):  # names are indented by 4, their help by 8
        text = _missing(re.findall(r"^│ {5}([^\s│]+)", box.partition("│ ──")[0], re.MULTILINE))
    if unknown := re.match(r"Unrecognized (?:options|arguments): ([^\s,=]+)", text):
        text = _unknown(unknown[1], " ".join(rows))
    return f"{text or 'cannot read these arguments'} (`{prog} --help` lists the options)"


def _missing(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def _unknown(word: str, content: str) -> str:
    meant = re.search(r"Perhaps you meant:.*?(--[\w.-]+)", content)
    what = "unknown option" if word.startswith("-") else "unexpected argument"
    return f"{what} {word}" + (f": did you mean {meant[1]}?" if meant else "")


def _wrong_type(option: str, given: str, rows: list[str]) -> str:
    """Say what an option expects instead of what it was given."""
    # Its help begins with its name and type, such as {None}|INT|{INT INT}.
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
