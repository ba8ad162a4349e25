"""What counts as a secret in a text, and the one line that refuses it. Every other module asks here.

A configuration, a command line, a run's folder, MLflow's records and a job on a cluster are read by others, so none of
them may hold a password, a key or a token. Those belong into environment variables, which MLflow, Arrow and Ray read
themselves. Imports the standard library alone: the command line's help needs it.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence

HIDDEN = "***"
NOT_SENT = (
    "a job's record would show this secret to everybody; set it in the environment of the cluster's nodes instead "
    "(a Kubernetes Secret, a file that they source)"
)

_IN_THE_ENVIRONMENT = "leave it out, and let the code of the network read it from an environment variable"

# A user name without a password is part of the address for these; for others, such as http and s3, it is a token.
_USER_ONLY = frozenset(
    re.findall(r"\w+", "abfs abfss adl wasb wasbs hdfs viewfs webhdfs sftp ssh smb postgresql mysql mssql")
)
_WORDS = frozenset(
    re.findall(r"\w+", "auth authorization bearer cookie jwt key keys pass pat pw pwd sas sig signature token tokens")
)
_INSIDE = re.compile(
    r"passw|passphrase|secret|credential|access_?key|api_?key|private_?key|account_?key|token(?!i[sz])"
)
# A name that ends so says where a secret is or how it is used: AWS_SHARED_CREDENTIALS_FILE, RAY_AUTH_MODE.
# So do options of networks: token_mixer, token_mlp, token_projection, token_dim, key_size.
_ABOUT = frozenset(re.findall(r"\w+", "dir file kind method mode path sock type dim mixer mlp projection size"))
_NO_SECRETS = frozenset({"PWD", "OLDPWD", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"})

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*):/{2,}(?P<rest>\S+)")
_NO_SCHEME = re.compile(r"(?<![^\s=\"'/,;(])[^\s/:@=\"']+:[^\s/@\"']+@(?=[\w\[])")  # user:password@host
_ASSIGNED = re.compile(r"(?P<before>^|[^\w.\-])(?P<name>[\w.\-]*[\w])=(?=(?P<value>\{[^\s}]*\}|[^\s&;#]+))")
# The same in JSON or YAML: "password": "x", {password: x}. Without quotes or a bracket it may be prose, as in
# "TOKEN: is not set".
_MAPPED = re.compile(
    r"(?P<before>[{,\"'])(?P<name>[\w.\-]*[\w])\\?[\"']?\s*:\s*\\?[\"']?"
    r"(?=(?P<value>\[[^\]]*\]?|(?<=\")[^\"]+|(?<=')[^']+|[^\s\"',}&;]+))"
)
# The same within a parameter of a URI, percent-encoded once or more: odbc_connect=UID%3Dme%3BPWD%3Dsecret%3B. A
# value in braces may hold what else ends one.
_ENCODED = re.compile(
    r"(?P<before>^|%(?:25)*(?:2[036]|3[BbFf]|7[Bb])|[^\w.\-%])(?P<name>[\w.\-]*[\w])%(?:25)*3[Dd]"
    r"(?=(?P<value>%(?:25)*7[Bb](?:(?!%(?:25)*7[Dd])\S)*%(?:25)*7[Dd]|(?:(?!%(?:25)*(?:26|3[Bb]))[^\s&;#])+))"
)
_HEADER = re.compile(r"(?i)(?P<name>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|token)\s+)?\S+")
_BEARER = re.compile(r"(?P<name>\bBearer\s+)(?!\*\*\*)\S+")
# Keys and tokens that can be told by their shape: AWS, GitHub, GitLab, Hugging Face, Slack, Databricks, Google, JWT.
_SHAPES = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w\-]{20,}|hf_[A-Za-z0-9]{30,}|"
    r"xox[abprs]-[\w\-]{10,}|dapi[0-9a-f]{32}|AIza[\w\-]{35}|eyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)


def redact(text: str) -> str:
    """The text with *** for every secret in it. What was redacted once comes back as it is."""
    pieces, at = [], 0
    for start, end in _spans(text):
        pieces += [text[at:start], HIDDEN]
        at = end
    return "".join(pieces) + text[at:]


def problem(text: object, *, asked_by: str) -> str:
    """Why a value is refused: a line that names the key, the value without its secret, and the variable to use; or "".

    Args:
        text: the value; one that is no text holds no secret.
        asked_by: the key, option or variable that holds it, such as "tracking.uri".
    """
    if not isinstance(text, str):
        return ""
    whole = "".join(text.split())  # a password may hold a space
    for form in (whole, urllib.parse.unquote(whole)):
        if (shown := redact(form)) != form:
            return f"{asked_by}={shown}: holds a secret, which others could read; {remedy(whole, asked_by=asked_by)}"
    return ""


def in_words(words: Sequence[str]) -> str:
    """Why a command line is refused, as `problem` says it of its first word with a secret; "" where there is none."""
    before = ""
    for word in words:
        key, sign, value = word.partition("=")
        if sign and before == "--env":
            line = in_variable(key, value, asked_by=f"--env {key}")
        elif sign and re.fullmatch(r"[\w.\-]+", key):
            line = problem(value, asked_by=key) or problem(word, asked_by="the command")
        else:
            line = (
                "" if os.path.exists(word) else problem(word, asked_by=before if before[:1] == "-" else "the command")
            )
        if line:
            return line
        before = word
    return ""


def in_option(name: str, value: object, *, asked_by: str) -> str:
    """Why an option of a network is refused: its name says that its text is a secret; or "".

    Args:
        name: with those of the mappings that it is in, "login.password".
        asked_by: the key that holds it.
    """
    if not isinstance(value, str) or not value or value.startswith(HIDDEN) or not _says_secret(name):
        return ""
    return f"{asked_by}: its name says that it holds a secret, which others could read; {_IN_THE_ENVIRONMENT}"


def in_variable(name: str, value: str, *, asked_by: str) -> str:
    """Why a variable is not sent to a cluster: its name says that it is a secret, or its value holds one; or ""."""
    if names_secret(name):
        return f"{asked_by}: {NOT_SENT}"
    found = problem(value, asked_by=asked_by)
    return f"{found.partition(': holds a secret')[0]}: {NOT_SENT}" if found else ""


def remedy(uri: str, *, asked_by: str) -> str:
    """The environment variables that take the place of a secret in this URI or key."""
    scheme = (re.match(r"\s*([A-Za-z][A-Za-z0-9+.\-]*):", uri) or " ")[0].strip().rstrip(":").lower()
    base = scheme.partition("+")[0]
    if base in ("postgresql", "mysql", "mssql"):
        return "give the whole URI in MLFLOW_TRACKING_URI instead"
    if base in ("s3", "s3a", "s3n"):
        return "give it in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), or as the node's role"
    if base in ("gs", "gcs"):
        return "give it in GOOGLE_APPLICATION_CREDENTIALS, the path of a key file, or as the node's role"
    if base in ("abfs", "abfss", "az", "adl", "wasb", "wasbs") or ".core.windows.net" in uri:
        return "give it in AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or as the node's identity"
    if base in ("http", "https") and asked_by in ("tracking.uri", "--tracking-uri", "MLFLOW_TRACKING_URI"):
        return "give it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if asked_by in ("--address", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        return "give Ray's token in RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH"
    if asked_by.startswith("model.options"):
        return _IN_THE_ENVIRONMENT
    return (
        "leave it out and give it in an environment variable: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or RAY_AUTH_TOKEN"
    )


def without(uri: str) -> str:
    """A URI without the secrets in it, for one that an earlier version saved: it still says where things are."""
    scheme, sign, rest = uri.partition("://")
    if redact(uri) == uri or not sign:
        return uri
    userinfo = _userinfo(scheme, rest)
    address, mark, query = rest[len(userinfo) + 1 if userinfo else 0 :].partition("?")
    kept = [part for part in query.split("&") if redact(f"?{part}") == f"?{part}"]
    bare = f"{scheme}://{address}" + (mark + "&".join(kept) if kept and query else "")
    return bare if redact(bare) == bare else redact(uri)


def names_secret(name: str) -> bool:
    """Whether a variable or a parameter of a URI of this name holds a secret: MY_PWD, DB_AUTH, X-Amz-Signature, sig."""
    if name in _NO_SECRETS:
        return False
    spread = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = re.split(r"[^a-z0-9]+", spread.lower())
    if words[-1] in _ABOUT:
        return False
    return bool(_WORDS & set(words)) or bool(_INSIDE.search("_".join(words)))


def of_environment(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of this process's variables that hold secrets, for what must not be sent: 8 characters or more."""
    held = os.environ if environment is None else environment
    return sorted({value.strip() for name, value in held.items() if names_secret(name) and len(value.strip()) >= 8})


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the secrets are, from left to right, without overlaps."""
    found = sorted(span for find in _FINDERS for span in find(text) if text[slice(*span)] != HIDDEN)
    apart: list[tuple[int, int]] = []
    for start, end in found:
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    return apart


def _in_uris(text: str) -> Iterator[tuple[int, int]]:
    for match in _URI.finditer(text):
        for inner in _URI.finditer(text, match.start("rest")):  # a proxy's URI may hold another
            yield from _user_span(inner)
        yield from _user_span(match)


def _user_span(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    userinfo = _userinfo(match["scheme"], match["rest"])
    if userinfo:
        yield match.start("rest"), match.start("rest") + len(userinfo)


def _userinfo(scheme: str, rest: str) -> str:
    """The user:password or token before the @ of a URI; "" where there is none, or only the name of a user."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if not authority or authority.startswith(HIDDEN + "@") or (not at and "@" not in rest):
        return ""
    if at and ":" not in urllib.parse.unquote(user):
        return "" if scheme.lower().partition("+")[0] in _USER_ONLY else user
    if not at and (":" not in authority or re.search(r"(?:^|\]|[^:]):\d*$", authority)):
        return ""  # a host with its port; the @ belongs to the path
    return rest.rpartition("@")[0]  # a password may hold an @ or a / itself


def _without_scheme(text: str) -> Iterator[tuple[int, int]]:
    for match in _NO_SCHEME.finditer(text):
        yield match.start(), match.end() - 1


def _assigned(text: str) -> Iterator[tuple[int, int]]:
    for match in (*_ASSIGNED.finditer(text), *_ENCODED.finditer(text), *_MAPPED.finditer(text)):
        name, before = match["name"], match["before"]
        if match["value"].startswith(HIDDEN):
            continue
        in_uri = before in tuple("?&#;") or before[-2:].upper() in ("23", "26", "3B", "3F")
        # Outside a URI a bare word says little: "key=value" is how messages write an override.
        secret = _says_secret(name) or (in_uri and names_secret(name))
        if name == "PWD":  # a password in the connection text of a database, elsewhere the shell's folder
            secret = in_uri or before == "="
        if secret:
            yield match.span("value")


def _says_secret(name: str) -> bool:
    """Whether a name says so by itself: password, api_key, DB_AUTH; not key, which may be any."""
    telling = _INSIDE.search(name.lower()) or re.search(r"[_\-]", name) or name.lower() == "pwd"
    return bool(telling) and names_secret(name)


def _behind(pattern: re.Pattern[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            yield match.end("name"), match.end()

    return find


def _shaped(text: str) -> Iterator[tuple[int, int]]:
    for match in _SHAPES.finditer(text):
        yield match.span()


_FINDERS = (_in_uris, _without_scheme, _assigned, _behind(_HEADER), _behind(_BEARER), _shaped)
