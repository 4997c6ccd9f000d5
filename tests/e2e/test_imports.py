"""Commands that read and encode load neither torchvision nor other heavy packages."""

import subprocess
import sys

import pytest

HEAVY = (
    *("torchvision", "torch._dynamo", "sympy", "sklearn", "scipy", "matplotlib"),
    *("pyarrow", "tifffile", "pandas", "datasets", "transformers", "timm"),
)
SCRIPT = """
import sys
from mvmae.cli.main import main

status = main(sys.argv[2:])
found = [name for name in sys.argv[1].split() if name in sys.modules]
assert status == 0, status
assert not found, found
"""


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_knn_loads_no_heavy_package(image_folder, tmp_path, suffix):
    folder = image_folder(per_class=10, suffix=suffix)
    words = ["knn", "random:vit_pico", str(folder), "--workers", "0"]
    command = [sys.executable, "-c", SCRIPT, " ".join(HEAVY), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
