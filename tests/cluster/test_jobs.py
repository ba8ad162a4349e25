"""What is decided before a cluster is asked: addresses, tokens, words, secrets, what travels, what answers mean."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import cluster
from cluster import constants, dashboard, job_entrypoint, jobs, nodes, verdicts, working_dir
from cluster.cli import arguments
from cluster.cli.main import main
from cluster.cli.parser import parser
from cluster.dashboard import ClusterError
from cluster.probe import OURS, Ask, Seen, look
from cluster.working_dir import WorkingDirError
from d2sm import __version__
from pipelines.config import Config, ConfigError
from pipelines.runs.trust import TrustError
from pipelines.runtime import auth, provenance, session
from pipelines.runtime.auth import AuthError
from pipelines.tracking.run import COMMIT, commit

TRAIN = ["train", "--recipe", "ffdnet_l1_cpu", "data.root=/data", "train.storage=/storage"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """No token, cluster or address of whoever runs the tests; what a test or Ray sets is gone afterwards."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("RAY_")] + ["D2SM_CLUSTER", "MLFLOW_TRACKING_URI"]:
        os.environ.pop(name, None)
    os.environ["HOME"] = str(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


def given_token(tmp_path: Path, text: str = "sesame") -> None:
    (tmp_path / ".ray").mkdir(exist_ok=True)
    (tmp_path / ".ray" / "auth_token").write_text(text)


@pytest.mark.parametrize("verb", ["submit", "jobs", "jobs list", "jobs logs", "jobs wait", "jobs stop", "check",
                                  "cluster", "cluster up", "cluster status", "cluster down"])  # fmt: skip
def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: d2sm {verb}" in capsys.readouterr().out


def test_a_verb_is_submitted_with_and_without_dashes() -> None:
    for between in ([], ["--"]):
        args = parser().parse_args(["submit", "--address", "http://head:8265", *between, *TRAIN])
        assert [word for word in args.words if word != "--"] == TRAIN and args.address == "http://head:8265"


# Addresses and the token


def test_the_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert auth.token() is None
    given_token(tmp_path, "of the home folder\n")
    assert auth.token() == "of the home folder"
    (tmp_path / "file").write_text("of a file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert auth.token() == "of a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(AuthError, match="RAY_AUTH_TOKEN_PATH=.*none"):
        auth.token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert auth.token() == "of the environment"


@pytest.mark.parametrize("host, here", [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True),
                                        ("10.0.0.1", False), ("head", False), ("", False)])  # fmt: skip
def test_loopback(host: str, here: bool) -> None:
    assert auth.loopback(host) == here


@pytest.mark.parametrize("address", ["10.255.0.1:6379", "ray://10.255.0.1:10001", "[2001:db8::1]:6379"])
def test_a_cluster_of_other_machines_is_joined_with_the_token_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    with pytest.raises(AuthError, match="RAY_AUTH_MODE=token") as error:
        auth.check_join(address)
    assert "\n" not in str(error.value)
    given_token(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    auth.offer_token()
    auth.check_join(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_loopback_is_joined_without() -> None:
    for address in ("127.0.0.1:9", "localhost:9"):
        auth.check_join(address)


@pytest.mark.parametrize("mode", ["", "disabled"])
def test_what_listens_beyond_loopback_is_not(monkeypatch: pytest.MonkeyPatch, open_port: int, mode: str) -> None:
    """This machine's own address, or loopback where the port is open on all interfaces."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    for address in (f"{own_address()}:{open_port}", f"127.0.0.1:{open_port}"):
        with pytest.raises(AuthError, match=f"RAY_ADDRESS={address}: .*RAY_AUTH_MODE=token"):
            auth.check_join(address)


def test_disabled_authentication_is_refused_for_jobs_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given_token(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    address = f"http://{own_address()}:{open_port}"
    for words in (["jobs", "list", "--address", address], ["submit", "--address", address, "--", "scenes", "/tmp/x"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert f"{address}: RAY_AUTH_MODE=disabled" in err and err.count("\n") == 1


def test_a_token_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = auth.make_token()
    path = tmp_path / ".ray" / "auth_token"
    assert path.read_text() == made == auth.token() and len(made) == 64
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["auth_token"]
    path.chmod(0o644)  # as Ray makes it
    assert auth.make_token() == made and path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert auth.make_token() == "of the environment"


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port where something listens that is no Ray: it says nothing, or these words."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer is not None:
            threading.Thread(target=lambda: server.accept()[0].sendall(answer), daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["closed", "silent", "http"])
def test_where_no_cluster_answers(kind: str) -> None:
    """Ray itself would try for minutes, deaf to Ctrl-C."""
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n" if kind == "http" else None) as port:
        address = "127.0.0.1:9" if kind == "closed" else f"127.0.0.1:{port}"
        since = time.monotonic()
        with pytest.raises(AuthError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there") as error:
            auth.check_answers(address, timeout=0.5)
        assert time.monotonic() - since < 30 and "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1", ":6379", "no-such-host.invalid:6379"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(AuthError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"):
        auth.check_answers(address, timeout=1)


@pytest.fixture
def open_cluster() -> Iterator[int]:
    """A port on all interfaces where gRPC answers, as Ray's does, without asking for a token."""

    class Alive(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if handler_call_details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Alive(),))
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None)


def test_a_cluster_that_asks_for_no_token_is_not_joined_with_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_cluster: int
) -> None:
    """It would ignore the token, and run what anybody sends it."""
    given_token(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for address in (f"{own_address()}:{open_cluster}", f"127.0.0.1:{open_cluster}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(AuthError, match=f"RAY_ADDRESS={address}: this cluster runs what anybody sends") as error:
            auth.check_cluster()
        assert "\n" not in str(error.value)


def test_what_gives_another_answer_is_left_to_ray(open_port: int) -> None:
    auth.check_asks_for_token(f"127.0.0.1:{open_port}")


def test_a_session_refuses_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("needs a process without Ray; the same refusal is tested above")
    monkeypatch.setenv("RAY_ADDRESS", "10.255.0.1:6379")
    with pytest.raises(AuthError, match="RAY_ADDRESS=10.255.0.1:6379"):
        session.start(cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(AuthError, match="RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers there"):
        session.start(cpus=1)


def test_which_cluster_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard.address_of() == f"http://127.0.0.1:{constants.DASHBOARD_PORT}"
    state = nodes.State("d2sm-0123abcd", "127.0.0.1:1", "http://127.0.0.1:2", "/tmp/d2sm-0123abcd-x", 1)
    nodes._written(state)
    assert nodes.read() == state
    assert dashboard.address_of() == "http://127.0.0.1:2"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:8265/")
    assert dashboard.address_of() == "http://there:8265"
    assert dashboard.address_of("here:8265") == "http://here:8265"
    with pytest.raises(ClusterError, match="--address ray://here"):
        dashboard.address_of("ray://here")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "ray://there")
    with pytest.raises(ClusterError, match="^RAY_API_SERVER_ADDRESS=ray://there: give the dashboard's address"):
        dashboard.address_of()


class Open(http.server.BaseHTTPRequestHandler):
    """A head that asks nobody for anything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def open_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def own_address() -> str:
    """An address of this machine that is not loopback; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("needs a network interface beside loopback")
        return str(trial.getsockname()[0])


def test_beyond_loopback_the_token_must_be_here_and_be_asked_for(tmp_path: Path, open_port: int) -> None:
    dashboard.check(f"http://127.0.0.1:{open_port}")  # loopback: as it is
    address = f"http://{own_address()}:{open_port}"
    with pytest.raises(AuthError, match="RAY_AUTH_TOKEN_PATH") as error:
        cluster.submit(["scenes", "/tmp/x"], address=address)
    assert "\n" not in str(error.value)
    given_token(tmp_path)
    with pytest.raises(AuthError, match="RAY_AUTH_MODE=token"):
        cluster.submit(["scenes", "/tmp/x"], address=address)


def test_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["submit", "--", "scenes", "/tmp/x"], ["jobs", "list"], ["jobs", "stop", "x"]):
        where = verb.index("--") if "--" in verb else len(verb)
        assert main([*verb[:where], "--address", "http://127.0.0.1:9", *verb[where:]]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "http://127.0.0.1:9: " in err


def test_up_refuses_a_taken_port_and_nodes_without_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, open_port: int
) -> None:
    assert main(["cluster", "up", "--port", str(open_port)]) == 2
    assert f"--port {open_port}: " in capsys.readouterr().err
    assert main(["cluster", "up", "--nodes", "0"]) == 2
    assert "at least one of each" in capsys.readouterr().err
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert main(["cluster", "up", "--port", "0", "--dashboard-port", "0"]) == 2
    assert "RAY_AUTH_MODE=disabled: the nodes listen beyond loopback" in capsys.readouterr().err
    assert nodes.read() is None and not nodes.path().exists()


def test_a_damaged_state_file(tmp_path: Path) -> None:
    (tmp_path / ".d2sm").mkdir()
    (tmp_path / ".d2sm" / "cluster.json").write_text("{}")
    with pytest.raises(nodes.NodesError, match=r"cluster.json: .*remove the file"):
        nodes.read()


def test_no_stranger_is_taken_for_a_node() -> None:
    """A process id that was given to somebody else since: this very process's. Session 0 is the kernel's."""
    sessions = (os.getpid(), os.getsid(0), 0)
    state = nodes.State("m", "127.0.0.1:1", "http://127.0.0.1:2", "/tmp/none", 1, sessions, nodes._boot())
    assert nodes.ours(state) == []


def test_process_ids_from_before_a_restart_of_the_machine_are_not_ours() -> None:
    """A session whose leader has ended, as of a node whose `ray start` was killed."""
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
    member = int((leader.stdout or pytest.fail()).readline())
    leader.wait()
    state = nodes.State("m", "127.0.0.1:1", "http://127.0.0.1:2", "/tmp/none", 1, (leader.pid,), nodes._boot())
    try:
        assert [process.pid for process in nodes.ours(state)] == [member]
        assert nodes.ours(replace(state, boot="the one before")) == []
    finally:
        os.kill(member, signal.SIGKILL)


# Words and secrets


def test_words_that_travel() -> None:
    assert arguments.for_cluster(TRAIN) == (TRAIN, [])
    assert arguments.for_cluster(["scenes", "/data/x"]) == (["scenes", "/data/x"], [])


@pytest.mark.parametrize(
    "more, message",
    [
        (["train.storage=runs"], "train.storage=runs: .*train.storage=/storage/runs"),
        (["data.root=photos"], "data.root=photos: .*data.root=/storage/photos"),
        (["evaluate.segmenter_weights=w.pth"], "evaluate.segmenter_weights=w.pth"),
        (["tracking.uri=sqlite:///mlflow.db"], "tracking.uri=sqlite:///mlflow.db: .*sqlite:////storage"),
        (["data.root="], "data.root: "),
        (["loss.queue_sise=3"], "loss.queue_sise: .*loss.queue_size"),
    ],
)
def test_words_that_mean_nothing_there(more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        arguments.for_cluster(
            [*(word for word in TRAIN if not word.startswith(f"{more[0].partition('=')[0]}=")), *more]
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scenes streets", "streets: .*such as /storage/streets"),
        ("prepare photos /s/shards", "photos: "),
        ("prepare /photos shards", "shards: "),
        ("prepare /photos /s/shards --labels mine.yaml", "--labels mine.yaml: .*--labels /storage/mine.yaml"),
        ("evaluate runs/first", "runs/first: "),
        ("evaluate models:/net@best", "evaluate models:/net@best: .*give --out .*/storage/results.json"),
        ("evaluate /s/first --out r.json", "--out r.json: .*such as --out /storage/r.json"),
        ("evaluate /s/first data.root=photos", "data.root=photos: .*data.root=/storage/photos"),
        ("evaluate /s/first evaluate.segmenter_weights=w.pth", "evaluate.segmenter_weights=w.pth: "),
        ("evaluate /s/first tracking.uri=sqlite:///mlflow.db", "tracking.uri=sqlite:///mlflow.db: .*sqlite:////storage"),
        ("evaluate /s/first evaluate.limmit=1", "evaluate.limmit: .*evaluate.limit"),
        ("restore a.png /s/out.png --model /s/first", "a.png: "),
        ("denoise /s/a.png out.png --model /s/first", "out.png: "),
        ("restore /s/a.png s3://bucket/out.png --model /s/first", "s3://bucket/out.png: "),
        ("restore /s/a.png /s/out.png --model runs/first", "--model runs/first: .*--model /storage/first"),
        ("restore /s/a /s/b --model models:/net@best --tracking-uri sqlite:///m.db", "--tracking-uri=sqlite:///m.db: "),
        ("export /s/first", "export: give the file to write"),
        ("export runs/first /s/first.onnx", "runs/first: "),
        ("export /s/first first.onnx", "first.onnx: "),
        ("report /s/first", "--out report.html: .*such as --out /storage/report.html"),
        ("report first --out /s/r.html", "first: "),
        ("figures /s/first", "--out figures: "),
        ("figures /s/first runs/second --out /s/figs", "runs/second: "),
        ("models list", "models list: give the store .*--tracking-uri"),
        ("models import w.pth --as net --tracking-uri http://mlflow", "w.pth: "),
        ("models register runs/first --as net", "runs/first: "),
        ("train --quiet", "train: give --recipe"),
        ("table --recipes ffdnet_l1_cpu --data photos train.storage=/s", "--data photos: "),
        ("tune --recipe demo --space weigths data.root=/d train.storage=/s", "space 'weigths': neither a file"),
        ("tune --recipe demo --space weights data.root=/d train.storage=s3://b/s", "train.storage=s3://b/s: a sweep"),
        ("table --recipes demo data.root=/d train.storage=s3://b/s", "train.storage=s3://b/s: a table"),
    ],
)  # fmt: skip
def test_relative_paths_of_any_verb_mean_nothing_there(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        arguments.for_cluster(words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "train --recipe demo data.root=~/photos train.storage=/s",
        "train --recipe demo data.root=/d train.storage=~/photos",
        "train --recipe demo data.root=/d train.storage=/s evaluate.segmenters_weights=[/w,~/photos]",
        "train --recipe demo data.root=/d train.storage=/s data.labels=~/photos",
        "train --recipe demo data.root=/d train.storage=/s tracking.uri=~/photos",
        "table --recipes demo demo:data.root=~/photos:train.lr=1 --data /d train.storage=/s",
        "evaluate /s/first data.root=~/photos",
        "train --config own.yaml train.storage=/s",
        "study plan.yaml train.storage=/s",
        "tune --recipe demo --space space.yaml data.root=/d train.storage=/s",
    ],
)
def test_a_home_folder_is_another_there(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("data: {root: ~/photos}\n")
    Path("plan.yaml").write_text(
        "settings: {data: {a: {data.root: /d}, b: {data.root: ~/photos}}}\nobjectives: {L1: {loss.weight: 0}}\n"
    )
    Path("space.yaml").write_text("loss.features_weights: [random, ~/photos]\n")
    with pytest.raises(ConfigError, match="^.*~/photos.*: ~ is another folder in the job") as error:
        arguments.for_cluster(words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "prepare /photos /s/shards --labels camvid",
        "evaluate models:/net@best --out /s/results.json evaluate.limit=1 tracking.uri=http://mlflow:5000",
        "evaluate s3://bucket/runs/first --out /s/r.json data.root=/photos",
        "restore /s/a.png /s/out.png --model models:/net@best --tracking-uri sqlite:////s/mlflow.db",
        "export models:/net@best /s/net.onnx",
        "report /s/first /s/second --out /s/report.html",
        "figures /s/first s3://bucket/runs/second --out /s/figs",
        "models list --tracking-uri http://mlflow:5000",
        "models register /s/first --as net",
        "train --keys",
    ],
)
def test_words_that_every_node_understands_travel_as_they_are(words: str) -> None:
    assert arguments.for_cluster(words.split()) == (words.split(), [])


def test_a_users_own_code_travels_with_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge.py").write_text("def net(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "/s/first", "evaluate.segmenter=judge:net"]
    assert arguments.for_cluster(words) == (words, [tmp_path / "judge.py"])


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The relative path of a file that could hold weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo/w.safetensors").touch()
    return "foo/w.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        "tune --recipe demo data.root=/d train.storage=/s INIT --space weights --metric psnr.sigma25",
        "train --recipe demo INIT data.root=/d train.storage=/s --quiet",
        "table --recipes ffdnet_l1_cpu ffdnet_d2sm_cpu INIT data.root=/d train.storage=/s",
        "table --data /d INIT train.storage=/s --recipes ffdnet_l1_cpu ffdnet_d2sm_cpu",
    ],
)
def test_initial_weights_are_named_where_they_were(weights: str, words: str) -> None:
    sent, carried = arguments.for_cluster(words.replace("INIT", f"train.init={weights}").split())
    assert sent == words.replace("INIT", "train.init=w.safetensors").split() and carried == [Path(weights)]
    parser().parse_args(sent)


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_initial_weights_of_a_configuration_are_named_behind_no_option(weights: str, dashes: list[str]) -> None:
    values = {"data.root": "/d", "train.storage": "/s", "train.init": weights}
    Config().replace(values).save("mine.yaml")
    words = ["--config", "mine.yaml", "--space", "weights", "--metric", "psnr.sigma25"]
    sent, carried = arguments.for_cluster(["tune", *words, *dashes])
    at = ["train.init=w.safetensors"]
    assert sent == (["tune", *words, *dashes, *at] if dashes else ["tune", *at, *words])
    assert carried == [Path("mine.yaml"), Path(weights)]
    args = parser().parse_args(sent)
    assert (args.overrides, args.metric) == (at, ["psnr.sigma25"])


@pytest.mark.parametrize(
    "words",
    [
        "table --recipes ffdnet_l1_cpu:train.init=FILE ffdnet_d2sm_cpu --data /d train.storage=/s",
        "table --recipes ffdnet_l1_cpu ffdnet_d2sm_cpu:train.init=FILE --data /d train.storage=/s",
        "table --recipes ffdnet_l1_cpu ffdnet_d2sm_cpu:train.init=FILE --data /d train.storage=/s train.init=FILE",
        "tune --recipe demo --space space.yaml data.root=/d train.storage=/s",
    ],
)
def test_initial_weights_of_one_row_or_point_alone_are_refused(weights: str, words: str) -> None:
    Path("space.yaml").write_text(f"train.init: ['', {weights}]\n")
    with pytest.raises(ConfigError, match=f"^train.init={weights}: a relative path .* no file of weights is sent for"):
        arguments.for_cluster(words.replace("FILE", weights).split())


@pytest.mark.parametrize("verb", [[], ["submit", "--", "train"], ["cluster", "down"], ["jobs", "list"], ["demo"]])
def test_verbs_that_stay(verb: list[str]) -> None:
    with pytest.raises(ConfigError, match="submit: "):
        arguments.for_cluster(verb)


PLAN = """
recipe: ffdnet_l1_cpu
keys: {train.storage: /storage}
settings: {noise: {noise25: {}, noise50: {evaluate.segmenter: "tests.helpers.segmenters:by_brightness"}}}
objectives: {L1: {}, D2SM: {loss.weight: 3}}
"""


def test_a_plan_travels_along(tmp_path: Path) -> None:
    """With the code that only its second setting names, once the user trusts it."""
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    words = ["study", str(file), "data.root=/data"]
    with pytest.raises(TrustError, match=r"by_brightness: .*plan\.yaml asks to import"):
        arguments.for_cluster(words)
    sent, carried = arguments.for_cluster([*words, "--trust"])
    assert sent == ["study", "plan.yaml", "data.root=/data", "--trust"] and carried[0] == file
    with pytest.raises(ConfigError, match="data.root=photos: a relative path"):
        arguments.for_cluster(["study", str(file), "--trust", "data.root=photos"])
    with pytest.raises(ConfigError, match=r"submit: study\.json\.xz holds the results of a study"):
        arguments.for_cluster(["study", "study.json.xz"])
    weights = tmp_path / "own.safetensors"
    weights.touch()
    near = os.path.relpath(weights)
    with pytest.raises(ConfigError, match=f"train.init={near}: a relative path"):
        arguments.for_cluster([*words, "--trust", f"train.init={near}"])


@pytest.mark.parametrize("before", ["./", "plans/../", ""])
def test_a_file_travels_however_its_path_is_written(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plans").mkdir()
    for folder in (tmp_path, tmp_path / "plans"):
        Config().replace({"data.root": "/data", "train.storage": "/storage"}).save(folder / "mine.yaml")
    for path in (f"{before}mine.yaml", f"{before}plans/mine.yaml"):
        for option in (["--config", path], [f"--config={path}"]):
            sent, carried = arguments.for_cluster(["train", *option])
            assert carried == [Path(path)] and "/" not in " ".join(sent) and "mine.yaml" in sent[-1]


def test_a_configuration_travels_along(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    Config().replace({"data.root": "/data", "train.storage": "/storage"}).save(file)
    for option in (["--config", str(file)], [f"--config={file}"]):
        sent, carried = arguments.for_cluster(["train", *option, "train.epochs=2"])
        assert carried == [file] and str(tmp_path) not in " ".join(sent) and "mine.yaml" in " ".join(sent)


@pytest.mark.parametrize(
    "verb, env, shown",
    [
        (["tracking.uri=http://me:hunter2@mlflow:5000"], {}, "tracking.uri=http://***@mlflow:5000"),
        ([], {"WHERE": "s3://key:hunter2@bucket"}, "--env WHERE"),
        ([], {"AWS_SECRET_ACCESS_KEY": "hunter2"}, "--env AWS_SECRET_ACCESS_KEY"),
        ([], {"MLFLOW_TRACKING_PASSWORD": "hunter2"}, "--env MLFLOW_TRACKING_PASSWORD"),
        (["train.name=sesame"], {}, "train.name=***"),
    ],
)
def test_secrets_do_not_travel(tmp_path: Path, verb: list[str], env: dict[str, str], shown: str) -> None:
    given_token(tmp_path)
    with pytest.raises(ClusterError, match="secret") as error:
        cluster.submit([*TRAIN, *verb], env=env, address="http://127.0.0.1:9")
    text = str(error.value)
    assert shown in text and "hunter2" not in text and "sesame" not in text and "\n" not in text


def test_code_that_several_rows_of_a_table_name_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minenet.py").write_text("def net(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = ["table", "--recipes", "ffdnet_l1_cpu", "ffdnet_d2sm_cpu", *TRAIN[3:], "model.name=minenet:net"]
    assert arguments.for_cluster(rows)[1] == [tmp_path / "minenet.py"]


def test_code_that_a_space_names_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("minenet", "minephi"):
        (tmp_path / f"{name}.py").write_text("def net(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(
        "model.name: [ffdnet, 'minenet:net']\n"
        "loss.features: [squeezenet1_0.fire3, [squeezenet1_0.fire3, 'minephi:net.layer1']]\n"
        "train.lr: {low: 1e-5, high: 1e-3, log: true}\n"
    )
    words = ["tune", *TRAIN[1:], "--space", "space.yaml"]
    sent = [Path("space.yaml"), *(tmp_path / f"{n}.py" for n in ("minenet", "minephi"))]
    with pytest.raises(TrustError, match="^model.name=minenet:net: space.yaml asks .* --trust"):
        arguments.for_cluster(words)
    assert arguments.for_cluster([*words, "--trust"]) == ([*words, "--trust"], sent)
    provenance.mark(tmp_path)  # as the folder of a run that was made here, which the job cannot know
    assert arguments.for_cluster(words) == (["tune", "--trust", *words[1:]], sent)


def test_where_runs_are_logged_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert jobs._variables({}, TRAIN) == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert jobs._variables({}, [*TRAIN, "tracking.uri=http://b"]) == {}
    assert jobs._variables({"MLFLOW_TRACKING_URI": "http://c"}, TRAIN) == {"MLFLOW_TRACKING_URI": "http://c"}
    assert arguments.for_cluster(["models", "list"], store="http://mlflow:5000") == (["models", "list"], [])


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "sqlite:///../m.db", "sqlite://"])
def test_a_store_of_the_jobs_own_folder_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"^--env MLFLOW_TRACKING_URI={uri}: a relative path"):
        cluster.submit(TRAIN, env={"MLFLOW_TRACKING_URI": uri}, address="http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=f"^MLFLOW_TRACKING_URI={uri}: a relative path"):
        cluster.submit(TRAIN, address="http://127.0.0.1:9")


def test_a_password_that_nobody_typed_is_said_to_be_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    with pytest.raises(ClusterError, match="env -u MLFLOW_TRACKING_URI d2sm submit") as error:
        cluster.submit(TRAIN, address="http://127.0.0.1:9")
    text = str(error.value)
    assert text.startswith("MLFLOW_TRACKING_URI=http://***@mlflow:5000: ") and "--env" not in text
    assert "hunter2" not in text and "\n" not in text


# What travels


def test_the_code_alone_is_sent(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    with working_dir.working_directory([tmp_path / "mine.py"]) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {*working_dir.CODE, working_dir.PROJECT, COMMIT, "mine.py"}
        files = [path for path in folder.rglob("*") if path.is_file()]
        ask = "import d2sm; from pipelines.tracking import commit; print(commit()[0], d2sm.__version__)"
        words = [sys.executable, "-c", ask]
        told = subprocess.run(words, cwd=folder, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
        assert told.stdout.split() == [commit()[0], __version__]
        assert sum(path.stat().st_size for path in files) < 2 * 2**20
        assert not [path for path in files if path.suffix in (".pyc", ".pth", ".png", ".safetensors")]
        assert (folder / "cluster" / "driver.py").exists()
    assert not folder.exists()


def test_data_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"0" * (working_dir.LIMIT + 1))
    too_much = r"10 MB.*weights.pth, 10.0 MB"
    with pytest.raises(WorkingDirError, match=too_much) as error, working_dir.working_directory([tmp_path]):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(WorkingDirError, match="^none: "), working_dir.working_directory(["none"]):
        pass
    (tmp_path / "d2sm").mkdir()
    with pytest.raises(WorkingDirError, match="/d2sm: .*a d2sm;"), working_dir.working_directory([tmp_path / "d2sm"]):
        pass


def test_what_links_lead_to_is_measured_before_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").write_bytes(b"0" * (working_dir.LIMIT + 1))
    mine = tmp_path / "mine"
    (mine / "part").mkdir(parents=True)
    (mine / "part" / "net.py").write_text("x = 1\n")
    (mine / ".cache").symlink_to(tmp_path / "data")  # not copied
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "more.py").write_text("x = 1\n")
    (mine / "other").symlink_to(tmp_path / "other")
    with working_dir.working_directory([mine]) as folder:
        assert {str(path.relative_to(folder / "mine")) for path in (folder / "mine").rglob("*") if path.is_file()} == {
            "part/net.py", "other/more.py"
        }  # fmt: skip
    monkeypatch.setattr("shutil.copytree", pytest.fail)
    (mine / "data").symlink_to(tmp_path / "data")
    for place, message in (
        (tmp_path / "data", r"10 MB.*mine/data/photo\.png, 10\.0 MB"),
        (tmp_path / "gone", "mine/data: is a link to nothing"),
        (mine, f"mine/data: is a link to {mine}, a folder that holds it"),
    ):
        (mine / "data").unlink()
        (mine / "data").symlink_to(place)
        with pytest.raises(WorkingDirError, match=message) as error:
            working_dir._add(mine, tmp_path / "job")
        assert "\n" not in str(error.value)


def test_the_pins_are_read() -> None:
    assert f"ray=={constants.RAY}" in jobs._pins() and all(re.fullmatch(r"\S+==\S+", line) for line in jobs._pins())


def test_a_job_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert job_entrypoint.main(["--", *TRAIN, "train.epochs=many"]) == 2
    assert capsys.readouterr().err.startswith("d2sm: train.epochs='many'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --recipe demo", "no -- before the command; write python -m cluster.job_entrypoint "),
        ("--no-preflght -- train --recipe demo", "--no-preflght: no such option; write "),
        ("-- restore /a.png /b.png s3://me:planted@bucket/x --model /m", "the command=s3://***@bucket/x: "),
    ],
)
def test_a_job_refuses_its_words_in_one_line(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert job_entrypoint.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"d2sm: {message}") and err.count("\n") == 1 and "planted" not in err


@pytest.mark.slow
def test_a_job_is_stopped_in_its_preflight() -> None:
    """While a tracking server is silent, which is asked for seconds; `d2sm jobs stop` sends Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        words = [sys.executable, "-m", "cluster.job_entrypoint", "--", *TRAIN, uri]
        job = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        silent.settimeout(60)
        asked, _ = silent.accept()
        with asked:
            job.send_signal(signal.SIGINT)
            _, err = job.communicate(timeout=60)
    assert job.returncode == 130 and err.startswith("d2sm: stopped; ") and err.count("\n") == 1


def test_the_former_name_of_the_entrypoint_still_runs() -> None:
    """Files filled in before name it: RayJob manifests, Slurm scripts."""
    words = [sys.executable, "-m", "cluster.driver", "--", *TRAIN, "train.epochs=many"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and done.stderr.startswith("d2sm: train.epochs='many'")


# The log


def test_a_log_is_made_tidy() -> None:
    out = io.StringIO()
    printer = jobs.LogPrinter(out)
    log = ["Running entrypoint for job x: exec python\n2026-11-23 02:59:36,720\tINFO job_manager.py:581 -- Runtime\n",
           "first\nsec", "ond\n\rstep 1/9", "\rstep 5/9", "\rstep 9/9\n", "\nat http://a:b@c/\n"]  # fmt: skip
    log += ["\x1b[33m(raylet)\x1b[0m Raylet is terminated. Reasons: (1) SIGKILL\n\t(2) lags\n    [state-dump] x\n",
            "    [2026-11-24 07:03:27,607 I 21290 21290] (raylet) accessor.cc:475: Received\n",
            "step 9/9\x1b[33m(raylet)\x1b[0m WARNING: 4 PYTHON worker processes\n",
            "[2026-11-24 07:51:08,501 E 3051 3051] core_worker.cc:2465: Actor with class name\nend"]  # fmt: skip
    for text in log:
        printer.write(text)
    printer.close()
    printer.note("waiting")
    assert out.getvalue() == "first\nsecond\nstep 1/9\nstep 5/9\nstep 9/9\n\nat http://***@c/\nstep 9/9\nend\nwaiting\n"
    assert printer.taken == len("".join(log))


# What the nodes' answers mean

VERSIONS = {"python": "3.11.7", "d2sm": "0.1.0", "ray": "2.60.0", "torch": "2.15.0"}
HERE = Seen("here", VERSIONS, root=("a", "b"))


def test_answers_that_are_well() -> None:
    seen = {"one": HERE, "two": HERE}
    found = [verdicts.nodes(seen), verdicts.versions(HERE, seen), verdicts.data("/data", HERE, seen),
             verdicts.storage("/storage", "", seen), verdicts.weights("", seen)]  # fmt: skip
    assert all(check.ok for check in found), found


@pytest.mark.parametrize(
    "other, name, message",
    [
        ({"versions": VERSIONS | {"ray": "2.59.0"}}, "versions", "ray is 2.59.0 on two"),
        ({"versions": VERSIONS | {"d2sm": "0.0.9"}}, "versions", "d2sm is 0.0.9 on two, 0.1.0 here; use one image"),
        ({"versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0"}}, "versions", "d2sm is another on two"),
        ({"root": ()}, "data", "data.root=/data: is empty on two; mount it there"),
        ({"root": ("a",)}, "data", "holds other files on two than here"),
        ({"root_error": "No such file"}, "data", "No such file on two"),
        ({"storage_error": "Permission denied"}, "storage", "train.storage=/storage: Permission denied on two; give"),
        ({"files": {"/w.pth": None}}, "weights", "/w.pth: not on two; put it into the image"),
        ({"modules": {"mine": False}}, "weights", "module mine: not on two"),
    ],
)
def test_answers_of_one_node_that_are_not(other: dict[str, object], name: str, message: str) -> None:
    seen = {"one": HERE, "two": replace(HERE, **other)}  # type: ignore[arg-type]
    found = {"versions": verdicts.versions(HERE, seen), "data": verdicts.data("/data", HERE, seen),
             "storage": verdicts.storage("/storage", "", seen), "weights": verdicts.weights("", seen)}  # fmt: skip
    assert {key for key, check in found.items() if not check.ok} == {name}
    assert message in found[name].answer and "\n" not in str(found[name])


def test_a_node_that_does_not_answer() -> None:
    check = verdicts.nodes({"one": HERE, "two": None})
    assert not check.ok and "two of 2: no answer" in check.answer


def test_enough_in_all_but_on_no_node(ray_session: None) -> None:
    config = Config().replace({"data.root": "/data", "train.cpus_per_worker": 2.0, "loss.weight": 0})
    assert verdicts.workers_fit(config, [{"CPU": 4.0}]).ok
    check = verdicts.workers_fit(config, [{"CPU": 1.0}] * 4)
    assert not check.ok and "only 0 workers find a node with 2 CPU" in check.answer


def test_workers_that_may_be_fewer_need_the_fewest_alone(ray_session: None) -> None:
    config = Config().replace({"data.root": "/data", "train.num_workers": [2, 8], "loss.weight": 0})
    check = verdicts.workers_fit(config, [{"CPU": 1.0}, {"CPU": 1.0}])
    assert check.ok and check.answer == "2 to 8 workers x 1 CPU; there are 2 CPU on 2 nodes"


def test_what_a_node_sees(tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / OURS).touch()
    ask = Ask(str(tmp_path), str(trial), files=(str(trial / OURS), "/none"), modules=("json", "none_such"))
    seen = look(ask, "n1")
    assert (seen.root, seen.root_error, seen.storage_error) == (("trial",), "", "")
    assert seen.files == {str(trial / OURS): 0, "/none": None} and seen.modules == {"json": True, "none_such": False}
    assert (trial / "n1").read_text() == "n1" and seen.versions["ray"] == constants.RAY
    assert seen.versions["d2sm"] == __version__
    (trial / OURS).unlink()
    assert "another folder of the same name" in look(ask, "n1").storage_error
    (trial / OURS).touch()
    uri = replace(ask, trial=trial.as_uri())
    assert look(uri, "n2").storage_error == "" and (trial / "n2").exists()
    assert "another place" in look(replace(uri, trial=tmp_path.as_uri()), "n2").storage_error
