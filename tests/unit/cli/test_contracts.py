"""The contracts on imports in pyproject.toml name every command."""

import tomllib
from pathlib import Path

from mvmae.cli.commands import COMMANDS

ROOT = Path(__file__).parents[3]
ABOVE = {"ablate", "recipes"}  # may use other commands, or belong to the command line itself


def test_every_command_is_in_the_contract_of_independence():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (modules,) = (c["modules"] for c in contracts["contracts"] if c["type"] == "independence")
    for name, command in COMMANDS.items():
        if name not in ABOVE:
            assert any(command.run_name.startswith(f"{module}.") for module in modules), name
