"""A folder of odd, hostile and corrupt files is trained on; each that cannot be read is named."""

import csv
import tarfile
from pathlib import Path

import pytest
from run_folders import metrics, skipped_paths

from mvmae.cli.main import main
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.open import open_source


@pytest.mark.slow
def test_run_on_odd_files_ends_and_names_every_file_it_could_not_read(
    data_root, tmp_path, monkeypatch
):
    import resource

    monkeypatch.chdir(tmp_path)
    with tarfile.open(data_root / "weird.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = open_source(["weird"], 3)
    count = len(source)
    unreadable = set()
    for index in range(count):
        try:
            source.read(index)
        except UnreadableImageError:
            unreadable.add(source.path(index))
    assert 50 < len(unreadable) < count / 2
    # The whole epoch in steps of one size, so that no file is left out.
    batch = next(size for size in range(64, 1, -1) if count % size == 0)
    args = ["weird", "--recipe", "demo", "--epochs", "1", "--warmup-epochs", "0", "--workers", "2"]
    args += ["--batch-size", str(batch), "--model.image-size", "16", "--device", "cpu"]
    assert main(["pretrain", *args, "--log-every", "1", "--out", "run"]) == 0
    assert metrics(Path("run"))[-1]["step"] == count // batch
    assert set(skipped_paths(Path("run"))) == unreadable
    # What the collection says can be decoded, and we do not read, is refused with a reason.
    with Path("weird/index.csv").open(newline="", encoding="utf-8") as file:
        decodes = {row["file"] for row in csv.DictReader(file) if row["decodes_13.0.0"] == "yes"}
    ours = {str(Path(path).relative_to("weird")) for path in unreadable}
    assert len(ours & decodes) < 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB: a reader's
