"""The files under examples/cluster are whole, and their commands are ones that mvmae takes."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mvmae.cli.parse import parse
from mvmae.config.pretrain import PretrainConfig
from mvmae.recipes import named

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
FAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$SAID"
"""


def read_script(name: str) -> str:
    """Return what the nodes run."""
    if name == "slurm.sbatch":
        return (CLUSTER / name).read_text()
    tree = yaml.safe_load((CLUSTER / name).read_text())
    if name == "skypilot.yaml":
        return tree["run"]
    replicas = tree["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"] == replicas["Worker"]
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    return container["args"][0]


@pytest.fixture
def words(tmp_path):
    """The arguments that a script gives to mvmae, with programs of the cluster that do nothing."""
    for name in ("torchrun", "srun", "scontrol", "scancel"):
        text = FAKE
        if name == "scontrol":
            text = "#!/bin/sh\necho node0\n"
        if name == "srun":
            text = '#!/bin/sh\nshift\nexec "$@"\n'
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script: str, out: Path) -> list[str]:
        said = tmp_path / "said"
        cluster = {
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_NNODES": "2",
            "SLURM_JOB_ID": "7",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "8",
            "SKYPILOT_NODE_RANK": "0",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "BUCKET": "b",
            "OUT": str(out),
        }
        env = os.environ | cluster | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(said)}
        script = script.replace("OUT=/runs/paper", f"OUT={out}")
        subprocess.run(["bash", "-eu", "-c", script], env=env, check=True, timeout=30)
        lines = said.read_text().splitlines()
        assert lines[lines.index("-m") + 1] == "mvmae"
        return lines[lines.index("mvmae") + 1 :]

    return run


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml", "kubernetes.yaml"])
@pytest.mark.parametrize("checkpoint", ["last.pt", "last", "previous"])
def test_a_job_begins_a_run_and_then_goes_on_with_it(name, checkpoint, words, tmp_path):
    out = tmp_path / "run"
    command, *arguments = words(read_script(name), out)
    config = parse(command, arguments)
    assert isinstance(config, PretrainConfig)
    assert config.model == named("pretrain", "paper").model
    assert config.out == out
    assert not config.resume
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "fresh").touch()
    assert "--resume" not in words(read_script(name), out)
    (out / "checkpoints" / checkpoint).touch()
    assert words(read_script(name), out) == ["pretrain", "--resume", "--out", str(out)]


def test_skypilot_and_kubernetes_have_what_a_job_needs():
    sky = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert {"resources", "num_nodes", "setup", "run", "envs", "file_mounts"} <= sky.keys()
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["spec"]["nprocPerNode"] == "8"
