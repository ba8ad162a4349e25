"""The terminal under a verb: closed pipes, other encodings, and lines about what takes time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import terminal
from cluster.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
# A verb's own function is replaced by one line of Python, which runs as `d2sm scenes` would.
VERB = """
import sys
from cluster.cli import main, scenes
def run_scenes(args):
    {code}
scenes.run_scenes = run_scenes
sys.argv = ["d2sm", "scenes", "x"]
sys.exit(main())
"""


def process(
    code: str, *, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **environment: str
) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of a process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=stdout, stderr=stderr, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout or b"", done.stderr or b""


def nobody_reads() -> int:
    """The end to write to of a pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "code",
    [
        "import sys; from cluster.cli import main; sys.exit(main(['train', '--keys']))",
        "import sys; from cluster.cli import main; sys.exit(main(['--help']))",
        "import sys; from cluster.cli import main; sys.exit(main(['--version']))",
        VERB.format(code="[print(number) for number in range(100_000)]"),
        VERB.format(code="print('one line', flush=True)"),
        VERB.format(code="print('one line')"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_verb_quietly(code: str, unbuffered: str) -> None:
    if unbuffered and "--" in code and "--keys" not in code:
        pytest.skip("argparse leaves out what it cannot print by itself")
    writer = nobody_reads()
    try:
        assert process(code, stdout=writer, PYTHONUNBUFFERED=unbuffered) == (terminal.PIPE_CLOSED, b"", b"")
    finally:
        os.close(writer)


def test_another_broken_pipe_is_an_error_like_any() -> None:
    code, out, err = process(VERB.format(code="raise BrokenPipeError('the store went away')"))
    assert (code, out) == (2, b"") and err == b"d2sm: the store went away\n"


def test_a_closed_stderr_keeps_the_exit_code_quiet() -> None:
    writer = nobody_reads()
    try:
        assert process(VERB.format(code="raise ValueError('no')"), stderr=writer)[0] == terminal.PIPE_CLOSED
    finally:
        os.close(writer)


ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE])
def test_a_terminal_that_is_not_utf_8(environment: dict[str, str]) -> None:
    code, out, err = process(
        VERB.format(code="print('27.1 \\xb10.2'); raise ValueError('photos/\\u8857.png')"), **environment
    )
    assert (code, out) == (2, b"27.1 \\xb10.2\n")
    assert err == b"d2sm: photos/\\u8857.png\n"


def test_a_file_name_that_is_no_text() -> None:
    code, out, _ = process(VERB.format(code="import os; print(os.fsdecode(b'a\\xff.png'))"))
    assert (code, out) == (0, b"a\\udcff.png\n")


def test_a_slow_import_is_announced_once(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "ray.py").write_text("")
    code = VERB.format(code=f"sys.path.insert(0, {str(tmp_path)!r}); import torch, ray; import torch")
    assert process(code) == (0, b"", b"d2sm: loading PyTorch\n")


def test_quiet_shows_no_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.runtime.progress import stage

    monkeypatch.setattr("cluster.cli.evaluate.run_evaluate", lambda args: stage("measuring"))
    assert main(["evaluate", "x", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["evaluate", "x"]) == 0
    assert capsys.readouterr().err == "d2sm: measuring\n"
    stage("outside")
    assert capsys.readouterr().err == "" and not [one for one in sys.meta_path if "Loading" in type(one).__name__]
