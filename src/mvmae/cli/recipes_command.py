"""`mvmae recipes`: list the recipes, or describe some in full."""

from mvmae import recipes, terminal
from mvmae.errors import UserError, suggest
from mvmae.recipes import paper
from mvmae.recipes.pretrain import VARIANTS


def list_recipes(args: list[str]) -> None:
    """Print the recipes, or those named in full; with --json as JSON.

    Raises:
        UserError: No command has a recipe of that name.
    """
    words, rest = terminal.flags(args)
    names = [word for word in rest if word not in ("-h", "--help")]
    text = "\n\n".join(map(describe_recipe, names)) if names else recipe_list()
    with terminal.output(words):
        print(text)
        summaries = {
            command: {
                name: recipe.summary
                for name, recipe in recipes.load_recipes(command).items()
                if name in names or not names
            }
            for command in recipes.HOMES
        }
        terminal.emit("result", {"command": "recipes", "recipes": summaries})


def describe_recipe(name: str) -> str:
    """Say what a recipe is for; for the paper's rows also figure, choices and cost.

    Raises:
        UserError: No command has such a recipe.
    """
    commands = [command for command in recipes.HOMES if name in recipes.load_recipes(command)]
    if not commands:
        known = [one for command in recipes.HOMES for one in recipes.load_recipes(command)]
        raise UserError(f"no recipe '{name}'{suggest(name, known)} (`mvmae recipes` lists them)")
    lines = [
        f"{name}, of mvmae {command}: {recipes.load_recipes(command)[name].summary}"
        for command in commands
    ]
    return "\n".join([*lines, *map(paper.describe, paper.find_rows(name))])


def recipe_list() -> str:
    """List recipes and variants, one per line."""
    lines = []
    for command in recipes.HOMES:
        known = recipes.load_recipes(command)
        lines += [f"{command}:", *(f"  {name:15} {one.summary}" for name, one in known.items()), ""]
    lines += ["Variants, for any recipe of pretrain (demo+mae):"]
    for name, variant in VARIANTS.items():
        lines.append(f"  +{name:14} {(variant.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)
