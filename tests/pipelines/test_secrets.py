"""Secrets planted in every place where a user may write one: refused in one line, and nowhere in what is left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main
from pipelines import config as configs
from pipelines import secrets
from pipelines.config import Config, ConfigError
from pipelines.runs.folder import RunFolder
from pipelines.secrets import names_secret, problem, redact
from pipelines.text import one_line
from pipelines.tracking import location, store
from pipelines.train import fit
from tests.conftest import tiny_config
from tests.helpers.mlflow_server import Server

PLANTED = "hunter2xyz"
URIS = {
    "http://me:hunter2xyz@server:5000": "MLFLOW_TRACKING_PASSWORD",
    "https://hunter2xyz@server": "MLFLOW_TRACKING_PASSWORD",
    "http://me:hunter2xyz%20@server": "MLFLOW_TRACKING_PASSWORD",
    "http://me:pass hunter2xyz@server": "MLFLOW_TRACKING_PASSWORD",
    "http%3A%2F%2Fme%3Ahunter2xyz%40server": "MLFLOW_TRACKING_PASSWORD",
    "http:/me:hunter2xyz@server": "MLFLOW_TRACKING_PASSWORD",
    "me:hunter2xyz@server:5000": "MLFLOW_TRACKING_PASSWORD",
    "postgresql+psycopg2://me:hunter2xyz@host/db": "MLFLOW_TRACKING_URI",
    "postgresql://host/db?user=me&password=hunter2xyz": "MLFLOW_TRACKING_URI",
    "mssql+pyodbc:///?odbc_connect=Driver%3DODBC%3BUID%3Dsa%3BPWD%3Dhunter2xyz%3BServer%3Ddb": "MLFLOW_TRACKING_URI",
    "mssql+pyodbc:///?odbc_connect=Driver%253DODBC%253BPwd%253Dhunter2xyz%253BServer%253Ddb": "MLFLOW_TRACKING_URI",
    "mssql+pyodbc:///?odbc_connect=PWD%3dhunter2xyz%3bUID%3dsa": "MLFLOW_TRACKING_URI",
    "mssql+pyodbc:///?odbc_connect=DRIVER=ODBC;UID=sa;PWD=hunter2xyz": "MLFLOW_TRACKING_URI",
    "http://server/x?next=%3Ftoken%3Dhunter2xyz%26a%3D1": "MLFLOW_TRACKING_PASSWORD",
    "s3://KEY:hunter2xyz@bucket/runs": "AWS_SECRET_ACCESS_KEY",
    "s3://bucket/runs?access_key=hunter2xyz": "AWS_ACCESS_KEY_ID",
    "s3://bucket/runs?region=us-east-1&secret_key=hunter2xyz": "AWS_SECRET_ACCESS_KEY",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Expires=9&X-Amz-Signature=hunter2xyz": "AWS_SECRET_ACCESS_KEY",
    "https://account.blob.core.windows.net/c?sv=2024&se=x&sp=r&sig=hunter2xyz": "AZURE_CLIENT_SECRET",
    "abfs://account:hunter2xyz@container/runs": "AZURE_CLIENT_SECRET",
    "abfss://container@account.dfs.core.windows.net/runs?sas_token=hunter2xyz": "AZURE_CLIENT_SECRET",
    "gs://bucket/runs?access_token=hunter2xyz": "GOOGLE_APPLICATION_CREDENTIALS",
    "http://proxy/?to=http://me:hunter2xyz@server": "MLFLOW_TRACKING_PASSWORD",
    "http://server/x?token=hunter2xyz": "MLFLOW_TRACKING_PASSWORD",
    "http://server/x?key=hunter2xyz#top": "MLFLOW_TRACKING_PASSWORD",
    "AccountName=x;AccountKey=hunter2xyz;EndpointSuffix=core.windows.net": "AZURE_CLIENT_SECRET",
    "ghp_0123456789012345678901234567890hunter2xyz": "environment variable",
}
KEYS = (
    "tracking.uri",
    "data.root",
    "train.storage",
    "evaluate.segmenter",
    "loss.features_weights",
    "train.name",
    "recipe",
)

SECRET_NAMES = """
    MY_PWD SAS AZURE_SAS X_AUTH TOKEN HF_TOKEN SECRET KEY api-key AWS_ACCESS_KEY_ID AWSAccessKeyId sig X-Amz-Signature
    X-Amz-Security-Token MLFLOW_TRACKING_PASSWORD PGPASSWORD sasToken GITHUB_PAT client_secret Authorization
"""
OTHER_NAMES = """
    PWD RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH AWS_SHARED_CREDENTIALS_FILE GOOGLE_APPLICATION_CREDENTIALS SSH_AUTH_SOCK
    TOKENIZERS_PARALLELISM OMP_NUM_THREADS AUTHOR region endpoint_override blob_storage_authority monkey
"""


@pytest.mark.parametrize("uri", URIS)
def test_a_secret_is_seen_and_left_out(uri: str) -> None:
    line = problem(uri, asked_by="tracking.uri")
    assert PLANTED not in line and line.startswith("tracking.uri=") and "\n" not in line
    assert URIS[uri] in line or "***" in line
    shown = redact(line)
    assert shown == line  # what was redacted once passes again


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://me:secret@host:5000/a", "http://***@host:5000/a"),
        ("at postgresql://me:p@ss/w@host/db now", "at postgresql://***@host/db now"),
        ("postgresql://host/db?password=secret&x=1", "postgresql://host/db?password=***&x=1"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("AWS_SECRET_ACCESS_KEY=abc failed", "AWS_SECRET_ACCESS_KEY=*** failed"),
        ("http://a:b@c and s3://d:e@f", "http://***@c and s3://***@f"),
        (
            "mssql:///?odbc_connect=Pwd%3Dsecret%3BServer%3Ddb&x=1: no answer",
            "mssql:///?odbc_connect=Pwd%3D***%3BServer%3Ddb&x=1: no answer",
        ),
        (
            "mssql:///?odbc_connect=UID%3Dsa%3BPWD%3D%7Ba%3Bb%7D%3BX%3D1",
            "mssql:///?odbc_connect=UID%3Dsa%3BPWD%3D***%3BX%3D1",
        ),
        ("mssql:///?odbc_connect=UID=sa;PWD={a;b};X=1", "mssql:///?odbc_connect=UID=sa;PWD=***;X=1"),
        ("postgresql://host/db?password=a%3Bb%26c&x=1", "postgresql://host/db?password=***&x=1"),
        ('401: {"user": "me", "password": "a b", "x": 1}', '401: {"user": "me", "password": "***", "x": 1}'),
        ("{'api_key': 'abc'} and {client_secret: abc, x: 1}", "{'api_key': '***'} and {client_secret: ***, x: 1}"),
    ],
)
def test_secrets_are_left_out_of_texts(text: str, safe: str) -> None:
    assert redact(text) == safe
    assert redact(safe) == safe
    assert one_line(text) == safe


def test_a_database_s_password_in_the_environment_is_neither_recorded_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its URI may hold one there."""
    uri = f"mssql+pyodbc:///?odbc_connect=Server%3Ddb%3BUID%3Dsa%3BPwd%3D{PLANTED}%3B"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.uri_of(Config()) == uri
    assert location.recorded(uri, RunFolder.at(tmp_path)) == ""
    assert PLANTED not in store.reason(uri, "no answer")
    store.check(uri)  # names no host, so nothing is asked whether it answers


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/mlflow.db", "models:/name@champion", "http://host:5000/a@b", "http://[::1]:5000/a@b",
        "s3://bucket/runs@v2", "s3://bucket/runs?endpoint_override=http%3A%2F%2F127.0.0.1%3A9000&region=us-east-1",
        "abfs://container@account.dfs.core.windows.net/runs", "abfss://container@account/x", "postgresql://me@host/db",
        "hdfs://me@node:8020/runs", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/run/token", "loss.weight=0.1",
        "an override is written key=value, such as train.epochs=2", "module:callable", "/data/a:b/c@d", "http://***@host",
        "MLFLOW_TRACKING_TOKEN: is not set", '{"key": "width", "token_mlp": "leff"}', "model.options.token_dim=4",
        "~/.ray/auth_token", "sig = 25", "12:30:05", "PWD=/home/me", "http://host/x?filter=size%3D3%26side%3D4",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert problem(text, asked_by="data.root") == ""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize("name", OTHER_NAMES.split())
def test_names_of_no_secrets(name: str) -> None:
    assert not names_secret(name)


def test_no_key_of_the_configuration_is_called_like_a_secret() -> None:
    assert list(filter(names_secret, configs.keys())) == []


@pytest.mark.parametrize("key", KEYS)
def test_no_configuration_holds_a_secret(key: str) -> None:
    for uri in URIS:
        with pytest.raises(ConfigError) as error:
            Config().replace({key: uri})
        line = str(error.value)
        assert line.startswith(f"{key}=") and "***" in line and PLANTED not in line and "\n" not in line


def test_a_list_of_texts_holds_none_either() -> None:
    with pytest.raises(ConfigError, match=r"loss.perceptual_layers=http://\*\*\*@b"):
        Config().replace({"loss.perceptual_layers": ["relu1", f"http://a:{PLANTED}@b"]})
    with pytest.raises(ConfigError) as error:  # of a value of another type
        Config().replace({"train.epochs": f"http://a:{PLANTED}@b"})
    assert PLANTED not in str(error.value)


def test_a_saved_configuration_that_is_given_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = Config().model_dump(mode="json")
    tree["tracking"]["uri"] = f"http://me:{PLANTED}@server:5000"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "data.root=/data"]) == 2
    out, err = capsys.readouterr()
    assert "mine.yaml: tracking.uri=http://***@server:5000: " in err and "MLFLOW_TRACKING_PASSWORD" in err
    assert PLANTED not in out + err and err.count("\n") == 1


def test_the_record_of_an_old_run_is_read_without_its_secret(tmp_path: Path) -> None:
    tree = Config().model_dump(mode="json")
    tree["tracking"]["uri"] = f"http://me:{PLANTED}@server:5000/a?x=1&token={PLANTED}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert configs.load(tmp_path / "config.yaml").tracking.uri == "http://server:5000/a?x=1"
    tree["tracking"]["uri"] = "http://***@server:5000"  # as the registry kept it
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert configs.load(tmp_path / "config.yaml").tracking.uri == "http://***@server:5000"


SECRET_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"password": PLANTED}, "password"),
    ({"width": 4, "login": {"servers": [{"api_key": PLANTED}]}}, "login.servers.api_key"),
    ({"client_secrets": ["", PLANTED]}, "client_secrets"),
]


@pytest.mark.parametrize("options, name", SECRET_OPTIONS)
def test_no_option_of_a_network_is_called_a_secret(
    options: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is given: typed, in a file, from Python. The record of an earlier version is read without it."""
    with pytest.raises(ConfigError, match=f"^model.options.{name}: its name says that it holds a secret") as error:
        Config().replace({"model.name": "mine:Network", "model.options": options})
    assert PLANTED not in str(error.value)
    tree = Config().model_dump(mode="json")
    tree["model"] |= {"name": "mine:Network", "options": options}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    typed = ["--recipe", "ffdnet_l1_cpu", "model.name=mine:Network", f"model.options={json.dumps(options)}"]
    for words in (["--config", str(tmp_path / "mine.yaml")], typed):
        assert main(["train", *words, "data.root=/data"]) == 2
        err = capsys.readouterr().err
        assert PLANTED not in err and "model.options" in err and "holds a secret" in err and err.count("\n") == 1, err
    recorded = configs.load(tmp_path / "mine.yaml").model.options
    assert PLANTED not in str(recorded) and "***" in str(recorded) and recorded.keys() == options.keys()


def test_options_of_networks_that_only_sound_like_secrets() -> None:
    options = {"token_mlp": "leff", "token_mixer": "pool", "num_tokens": 4, "key": "a", "secret": None, "keys": ["b"]}
    assert Config().replace({"model.name": "mine:Network", "model.options": options}).model.options == options


WORDS = [
    (["train", "--recipe", "ffdnet_l1_cpu", "tracking.uri={}"], "tracking.uri"),
    (["train", "--recipe", "ffdnet_l1_cpu", "data.root={}"], "data.root"),
    (["train", "--recipe", "ffdnet_l1_cpu", "data.root=/d", "train.storage={}"], "train.storage"),
    (["train", "--recipe", "ffdnet_l1_cpu", "data.root=/d", "evaluate.segmenter={}"], "evaluate.segmenter"),
    (["train", "--recipe", "{}", "data.root=/d"], "--recipe"),
    (["train", "--config={}"], "--config"),
    (["denoise", "a.png", "b.png", "--model", "{}"], "--model"),
    (["denoise", "{}", "b.png", "--model", "runs/a"], "the command"),
    (["evaluate", "{}"], "the command"),
    (["evaluate", "runs/a", "--out", "{}"], "--out"),
    (["report", "{}"], "the command"),
    (["models", "list", "--tracking-uri", "{}"], "--tracking-uri"),
    (["models", "show", "{}"], "the command"),
    (["table", "--recipes", "ffdnet_l1_cpu:tracking.uri={}", "--data", "/d"], "--recipes"),
    (["prepare", "{}", "/tmp/x"], "the command"),
    (["jobs", "list", "--address", "{}"], "--address"),
    (["submit", "--", "train", "--recipe", "ffdnet_l1_cpu", "data.root={}"], "data.root"),
    (["submit", "--address", "{}", "--", "scenes", "/tmp/x"], "--address"),
    (["{}"], "the command"),
    (["train", "--unknown", "{}"], "--unknown"),
]


@pytest.mark.parametrize("words, shown", WORDS, ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_no_verb_takes_a_secret(
    words: list[str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (
        f"http://me:{PLANTED}@server:5000",
        f"s3://KEY:{PLANTED}@bucket/x",
        f"s3://b/x?X-Amz-Signature={PLANTED}",
    ):
        for more in ([], ["-v"]):
            assert main([*(word.format(uri) for word in words), *(more if words[0] == "train" else [])]) == 2
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1 and PLANTED not in err, err
            assert err.startswith(f"d2sm: {shown}") and "***" in err
    assert list(tmp_path.iterdir()) == []  # nothing is written, no cache either


@pytest.mark.long
def test_a_run_leaves_no_secret_behind(
    ray_session: None, scenes_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The password of a server, given where it may be given: not in the run, MLflow's records or Ray's logs."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", f"//me:{PLANTED}@"))
        config = tiny_config(scenes_root, tmp_path / "runs", train__num_workers=1, train__max_steps=2)
        done = fit(config.replace({"tracking.uri": "", "loss.weight": 0}), quiet=True)
        assert done.uri == server.uri and os.environ["MLFLOW_TRACKING_PASSWORD"] == PLANTED
        assert store.client(done.uri).get_run(done.run_id).info.status == "FINISHED"
    logs = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "session_latest" / "logs"
    kept = [path for top in (tmp_path, logs.resolve()) for path in top.rglob("*") if path.is_file()]
    assert len(kept) > 30 and [path for path in kept if PLANTED.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("name", ["DB_PWD", "AZURE_SAS", "MY_AUTH", "HF_TOKEN", "SOME_SECRET", "API_KEY", "WHERE"])
def test_no_variable_of_a_job_is_a_secret(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = f"s3://key:{PLANTED}@bucket" if name == "WHERE" else PLANTED
    assert (
        main(["submit", "--address", "http://127.0.0.1:9", "--env", f"{name}={value}", "--", "scenes", "/tmp/x"]) == 2
    )
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and PLANTED not in err and f"--env {name}" in err
    assert "environment of the cluster's nodes" in err


def test_secrets_of_the_environment_are_known() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "PWD": "/home/somebody",
        "X_TOKEN": "short",
        "RAY_AUTH_MODE": "disabled",
    }
    assert secrets.of_environment(environment) == [PLANTED]
