"""Without the packages of the pipeline, as beside the loss alone, every verb says in one line what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster.cli.parser import parser
from tests.helpers.verbs import verb_names

VERBS = [
    "demo", "scenes x", "prepare a b", "train --recipe demo data.root=a", "train --keys", "train --recipes",
    "tune --recipe demo --space weights data.root=a", "table --recipes demo --data a", "study a", "evaluate a",
    "restore a b --model a", "denoise a b --model a", "report a", "figures a", "models list", "models show a/1",
    "models register a --as a", "models import a --as a", "export a", "models promote a/1",
    "models compare a/1 a/2", "submit -- train --recipe demo data.root=/a", "jobs list", "jobs logs x", "jobs wait x",
    "jobs stop x", "check --recipe demo data.root=a", "cluster up", "cluster status", "cluster add", "cluster kill",
    "cluster down",
]  # fmt: skip
CODE = """
import sys
from importlib.abc import MetaPathFinder

ABSENT = {"ray", "mlflow", "pydantic", "pyarrow", "imagecodecs", "skimage", "sklearn", "psutil", "filelock", "optuna",
          "rich", "matplotlib", "jinja2", "markupsafe", "PIL", "pandas", "fsspec", "yaml", "tqdm", "safetensors"}

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from cluster.cli.main import main

for words in sys.argv[1:]:
    print(main(words.split()), flush=True)
"""


def test_every_verb_says_what_to_install(tmp_path: Path) -> None:
    groups = {name.split()[0] for name in verb_names(parser()) if " " in name}
    tried = {" ".join(words.split()[:2] if words.split()[0] in groups else words.split()[:1]) for words in VERBS}
    assert verb_names(parser()) - groups == tried
    (tmp_path / "a").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *VERBS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2"] * len(VERBS), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("d2sm: ")]
    assert len(lines) == len(VERBS) and "Traceback" not in done.stderr
    for line in lines:
        assert "is not installed" in line and "pip install -c pins.txt -e '.[pipelines]'" in line
