r"""Constructions that make a native reader stumble: `python -m checks.english [PATH...]`.

Prints `file:line: phrase -> replacement` and ends with status 1 if it finds any. Without paths it
reads the code, the tests, README, CONTRIBUTING and docs; not the history in docs/log.md.
A pattern belongs here if it has hardly any correct use: this check has no way to allow a line.
In a pattern a blank stands for any white space, also for the break between two comment lines or
between two strings that Python joins. A match with a group `fine` is correct English.
"""

import ast
import re
import sys
from pathlib import Path

from checks.files import CODE, PAGES, ROOT, find, relative_name, report

HISTORY = {ROOT / "docs" / "log.md"}
# A line break with what surrounds it in a comment, a quotation or two strings that Python joins.
BREAK = re.compile(r"""[ \t]*["']?[ \t]*\n[ \t]*(?:\#[ \t]*|>[ \t]*|[rf]?["'])?""")

BE = r"(?:is|are|was|were|be|been|being)"
NUMBER = r"(?:hundred|thousand|million|dozen|ten|twenty|thirty|forty|fifty|sixty|\d[\d,]*)"
# "is no X" is wrong for "is not an X"; "there is no X" and "is no larger" are fine.
COMPARATIVE = (
    "longer|more|less|fewer|better|worse|larger|smaller|slower|faster|higher|lower|greater|"
    "shorter|later|earlier|nearer|closer|different|wider|deeper|cheaper|one|matter|doubt|guarantee"
)

PHRASES = {
    rf"{BE} told(?! apart)": "prints, reports, is set by, receives",
    rf"{BE} said(?! to be true)": "is reported, a message says",
    r"\bit says of\b": "it says about",
    rf"some {NUMBER}\b": "a few hundred, about 300",
    r"from nothing\b": "from scratch",
    rf"(?P<fine>\b(?:there|where) (?:\w+ )?)?\b{BE} no (?!{COMPARATIVE})\w+": "is not a",
    r"of (?:its|their) own\b": "its own, a separate",
    r"an own\b": "its own",
    r"(?:stands?|stood) (?:in|beside|below|above|under|there|at|behind|before)\b": "is in",
    r"(?:lies?|lay) (?:in|beside|there|behind)\b": "is in",
    r"without a word\b": "silently",
    r"(?:chosen|drawn|picked|taken|hidden) by chance\b": "at random",
    r"mend(?:s|ed|ing)?\b": "fix",
    r"(?:is|are|does|do|be) the (?:better|worse|larger|smaller|faster)(?! (?:of|one|the))\b": (
        "is better"
    ),
    r"no such (?:option|command|verb|recipe|field)\b": ("unknown option"),
    r"nobody is at\b": "idle, unused",
    r"parted\b": "separated",
    r"(?:sum|sums|summed) (?:it |them )?up (?:by|in|as)\b": "represented by",
    r"(?:of|in|over|for|with|after|at|to|on|by|from|than) so (?:many|few|much)\b": (
        "this number of, as many as"
    ),
    r"so.manieth\b": "n-th",
    r"\bthe one\b[^.;:\n]{1,60}\bthe other\b": "name both",
    r"as [\w.'`]+ ha(?:s|ve) it\b": "as in",
    r"of which (?:it|one|this|he) is (?:one|a)\b": "one of them",
    r"what (?:learns|tests|judges)\b": "training images, test images",
    r"(?:images?|rest|others?|ones|that|which|class|fifth) (?:learns?)\b": "training images",
    r"(?:images?|rest|others|fifth|group) (?:of each class |of a class )?tests\b": "test images",
    r"in the place of\b": "in place of, instead of",
    r"there where\b": "where",
    r", for (?:there|it|they|its|nothing|nobody) (?:is|are|was|has|have|can|did)\b": "because",
    r"(?<!\")(?<!')(?<!`)(?<![_.{])\bverbs?\b(?![\"'`_=}]| =)": "command",
    r"control letters\b": "control characters",
    r"laid on white\b": "composited onto white",
    rf"{BE} passed over\b": "skipped",
    r"anew\b": "again",
    r"go(?:es|ne)? on\b(?! and off)": "continue, resume",
    r"went on\b": "continued, resumed",
    r"of (?:8|12|16|32|64)(?: or (?:8|12|16|32|64))? bits?\b": "8-bit",
    r"shar(?:e|es|ed|ing) out\b": "split across",
    r"(?:held|hold (?:it|them)|holds (?:it|them)) against\b": "compare with",
    r"(?:to|from) (?:its|the) bottom\b": "including subfolders",
    r"called so\b": "with that name",
    r"found out\b": "detected, inferred",
    r"(?:whereof|thereof|wherein|thereby|hitherto|aforesaid|therein|whither)\b": "plain words",
    r"(?:a|an|one) (?:row|line|file|panel|table|path|value|name|object|picture|colour|key|number) "
    r"an? (?:image|line|file|process|patch|class|run|view|row|pixel|seed|page)\b": "one per",
    r"besides[.,;:)]": "as well, too",
    r"(?:first|last|next|oldest|newest) come\b": "arrive",
    r"none such\b": "none",
    r"(?:make|makes|made|making) use of\b": "use",
    r"be it\b": "whether",
    r"(?:holds?|held) (?:it|them|\w+) for (?:one|a|an|the)\b": "takes for, considers",
    r"what one who\b": "what someone who",
    r"is it so\b": "if so",
    r"by the way\b": "(delete)",
    r"in words of\b": "in the form of",
    r"there is said\b": "a message says",
    r"it (?:is|was) (?:let|left) (?:go|be)\b": "kept",
    r"up from the (?:first|start)\b": "from the start",
    r"a (?:second|third|fourth|half|tenth|fifth|quarter) as much again\b": "half more",
    r"(?:quick|slow|fast)est of (?:its|their|all) kind\b": "fastest",
    r"as (?:good|well) as nothing\b": "almost nothing",
    r"not any ?longer\b": "no longer",
    r"with(?:out|in) (?:doing|saying) so much as\b": "without",
    r"(?:does|do|did|can|may|will|would|need|needs) (?:it|they) not\b": "does not",
}
# Docstrings that describe a thing by a riddle instead of saying what it does or is.
OPENINGS = {
    r'"""(?:What|Of|So|Such|Which|Who|That|By|Than|Upon)\b': "start with a verb or a noun",
    r'"""See [^"]*"""': "delete, or say what it does",
}
CONSTANT = re.compile(
    r"\b_?(?:MOST|LEAST|FEWEST|LARGEST_ALLOWED)_[A-Z]\w*|\b_?(?:MOST|LEAST|FEW)\b"
)
DANGLING_START = re.compile(r"_*(?:of|at|by|for|upon|beyond|under|off|into|onto|than|about)_")
DANGLING_END = re.compile(r".*_(?:of|at|by|for|from|as|with|than|into|onto|upon|to)$")
PARTICIPLES = (
    "told|made|found|kept|held|taken|drawn|shown|written|given|said|seen|left|laid|begun|brought|"
    "bound|built|cut|dealt|done|met|put|sought|sent|spent|stood|thought|understood|"
    "as_found|as_written"
)
PARTICIPLE = re.compile(
    rf"_*(?:{PARTICIPLES}|(?!need|seed|feed|speed|embed|red|bed|shed)[a-z]+ed)$"
)
# Context managers and adapters, which read well at their call: `with locked(file):`.
READS_WELL = {"locked", "named", "cached", "sorted", "reversed", "batched", "padded", "quoted"}


def compiled(patterns: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Compile patterns in which a blank is any number of blanks."""
    made = []
    for pattern, replacement in patterns.items():
        start = "" if pattern.startswith(("\\b", "(?<", "(?P", '"', ",")) else r"\b"
        made.append((re.compile(start + pattern.replace(" ", " +"), re.IGNORECASE), replacement))
    return made


EVERYWHERE, IN_CODE = compiled(PHRASES), compiled(OPENINGS)


def bad_phrases(path: Path, text: str) -> list[tuple[int, str, str]]:
    """Return line, phrase and replacement for each banned construction in a text."""
    flat = BREAK.sub(lambda match: " " * len(match[0]), text)
    patterns = EVERYWHERE + (IN_CODE if path.suffix == ".py" else [])
    found = []
    for pattern, replacement in patterns:
        for match in pattern.finditer(flat):
            if match.groupdict().get("fine"):
                continue
            line = text.count("\n", 0, match.start()) + 1
            found.append((line, " ".join(match[0].split()), replacement))
    return found


def bad_names(text: str) -> list[tuple[int, str, str]]:
    """Return line, name and replacement for names that explain nothing.

    Checked are constants, and names of functions and classes; a test's name is a sentence and may
    end as it likes.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        found += [(number, match[0], "MAX_..., MIN_...") for match in CONSTANT.finditer(line)]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = node.name
        if name.startswith(("test_", "__")) or name.lstrip("_") in READS_WELL:
            continue
        if DANGLING_START.match(name) or DANGLING_END.match(name):
            found.append((node.lineno, name, "a name that does not hang on a preposition"))
        elif PARTICIPLE.match(name) and not (isinstance(node, ast.ClassDef) or is_property(node)):
            found.append((node.lineno, name, "a verb, or the noun of what it returns"))
    return found


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is read like a field, whose name may be a participle: `batch.skipped`."""
    return any(
        isinstance(one, ast.Name) and one.id == "property" for one in function.decorator_list
    )


def problems_in(path: Path) -> list[str]:
    """Return the messages for one file, in the order of its lines."""
    if path == Path(__file__) or path in HISTORY:
        return []
    text = path.read_text()
    found = bad_phrases(path, text) + (bad_names(text) if path.suffix == ".py" else [])
    return [
        f"{relative_name(path)}:{line}: {phrase} -> {replacement}"
        for line, phrase, replacement in sorted(found)
    ]


def main(arguments: list[str]) -> None:
    """Check the named files and folders, or all."""
    if arguments:
        named = [Path(name).absolute() for name in arguments]
        paths = [
            path
            for one in named
            for path in ([one] if one.is_file() else [*one.rglob("*.py"), *one.rglob("*.md")])
        ]
    else:
        paths = [*find(CODE, ".py"), *find(PAGES, ".md")]
    report([problem for path in sorted(paths) for problem in problems_in(path)])


if __name__ == "__main__":
    main(sys.argv[1:])
