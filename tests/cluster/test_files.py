"""The files for clusters: valid for who reads them, and of one mind on image, versions and ports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import constants
from cluster.cli.parser import parser
from pipelines import config as configs
from pipelines.recipes import recipe

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "cluster" / "files"
NAMES = ("Dockerfile", "raycluster.yaml", "rayjob.yaml", "aws.yaml", "gcp.yaml", "slurm.sh")


def text(name: str) -> str:
    return (FILES / name).read_text()


def tree(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text(name)))


def test_these_are_the_files() -> None:
    assert sorted(path.name for path in FILES.iterdir()) == sorted(NAMES)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packaged["cluster"] == ["files/*"]


def test_the_facts_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"d2sm:{project['version']}" == constants.IMAGE
    assert project["requires-python"] == f">={constants.PYTHON}"
    assert f"ray=={constants.RAY}" in (ROOT / "pins.txt").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_image_versions_and_ports_agree(name: str) -> None:
    found = text(name)
    for image in re.findall(r"d2sm:\d[\w.]*\w", found):
        assert image == constants.IMAGE
    assert set(re.findall(r"[Pp]ython[:=]?[ (]?(3\.\d+)", found)) <= {constants.PYTHON}
    for port in re.findall(r"(?:containerPort: |--port=|\bPORT=)(\d+)", found):
        assert int(port) in (constants.GCS_PORT, constants.DASHBOARD_PORT, constants.CLIENT_PORT)
    for port in re.findall(r"(?:--dashboard-port=|DASHBOARD_PORT=)(\d+)", found):
        assert int(port) == constants.DASHBOARD_PORT
    for port in re.findall(r"mlflow:(\d+)", found):
        assert int(port) == constants.TRACKING_PORT
    for path in re.findall(r"data\.root=(\S+)", found):
        assert path.startswith(f"{constants.DATA}/")
    for path in re.findall(r"train\.storage=(\S+)", found):
        assert path.startswith(f"{constants.STORAGE}/")
    assert set(re.findall(r"(?:runAsUser|runAsGroup|fsGroup|--uid|^USER):? (\d+)", found, re.M)) <= {
        str(constants.USER)
    }


def test_the_files_say_what_they_should() -> None:
    assert f"ARG PYTHON={constants.PYTHON}" in text("Dockerfile") and f"USER {constants.USER}" in text("Dockerfile")
    assert tree("raycluster.yaml")["spec"]["rayVersion"] == constants.RAY
    assert tree("rayjob.yaml")["spec"]["rayClusterSpec"] == tree("raycluster.yaml")["spec"]
    for name in NAMES:
        assert re.search(r"RAY_AUTH_MODE=token|mode: token", text(name)), f"{name}: without Ray's token"


def test_the_image_has_what_the_pipeline_needs_and_no_development_packages() -> None:
    found = re.search(r'RUN python -c "(.*?)" > needed\.txt', text("Dockerfile").replace("\\\n", ""), re.S)
    assert found
    done = subprocess.run([sys.executable, "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    needed = set(done.stdout.splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["features"], *extras["pipelines"]}
    assert needed == {one for one in wanted if not one.startswith("d2sm")}
    assert not needed & set(extras["dev"])


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_them_are_understood(name: str) -> None:
    plain = re.sub(r"\\\n#?|\n\s+(?=\w+\.\w+=)", " ", text(name))
    for words in re.findall(r"(?:d2sm submit[^\n]*? -- |cluster\.driver -- )(train [^\n#]*)", plain):
        args = parser().parse_args(words.split())
        recipe(args.recipe).replace(configs.parse(args.overrides))
    for words in re.findall(r"# +d2sm (submit [^\n]*)", plain):
        parser().parse_args(words.split())


def validator(shared: Path, kind: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of the dev extra")
    path = shared / "data" / "kuberay" / f"ray.io_v1_{kind}.schema.json"
    if not path.exists():
        pytest.skip(f"needs KubeRay's schema {path}, which is not on this machine")
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


@pytest.mark.parametrize("name, kind", [("raycluster.yaml", "rayclusters"), ("rayjob.yaml", "rayjobs")])
def test_kuberay_takes_them(shared: Path, name: str, kind: str) -> None:
    checks = validator(shared, kind)
    assert [error.message for error in checks.iter_errors(tree(name))] == []
    wrong = tree(name)
    wrong["spec"]["numWorkers"] = 3  # the schema does see what is unknown
    assert list(checks.iter_errors(wrong))


@pytest.mark.parametrize("group", ["head", "gpu", "cpu"])
def test_every_pod_is_held_in(group: str) -> None:
    spec = tree("raycluster.yaml")["spec"]
    groups = {"head": spec["headGroupSpec"], **{one["groupName"]: one for one in spec["workerGroupSpecs"]}}
    assert set(groups) == {"head", "gpu", "cpu"}
    pod = groups[group]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == constants.USER
    (container,) = pod["containers"]
    assert container["image"] == constants.IMAGE
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    limits = container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(limits) and ("nvidia.com/gpu" in limits) == (group == "gpu")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {
        constants.DATA,
        constants.STORAGE,
        "/dev/shm",
    }


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_rays_launcher_takes_them(name: str) -> None:
    pytest.importorskip("jsonschema", reason="needs jsonschema, of the dev extra")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(tree(name))
    validate_config(config)
    assert config["docker"]["image"] == constants.IMAGE
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert all("dashboard-host=0" not in command for command in config["head_start_ray_commands"])


def test_bash_understands_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", str(FILES / "slurm.sh")], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_what_leaving_it_out_means(name: str) -> None:
    """At least one comment to every three settings, and most of them name the default."""
    lines = [line for line in text(name).splitlines() if line.strip()]
    comments = [line for line in lines if line.lstrip().startswith("#") and "#SBATCH" not in line]
    assert len(comments) * 3 >= len(lines) - len(comments)
    assert sum("If omitted" in line or "Must be given" in line for line in comments) >= 5
