import subprocess
import sys

import pytest

from pipelines.text import (
    columns,
    did_you_mean,
    listed,
    markdown,
    markdown_code,
    more,
    one_line,
    printable,
    redact,
    show,
)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://me:secret@host:5000/a", "http://***@host:5000/a"),
        ("at postgresql://me:p@ss/w@host/db now", "at postgresql://***@host/db now"),
        ("postgresql://host/db?password=secret&x=1", "postgresql://host/db?password=***&x=1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("models:/name@champion", "models:/name@champion"),
    ],
)
def test_passwords_are_left_out(text: str, safe: str) -> None:
    assert redact(text) == safe
    assert redact(safe) == safe  # what was redacted once may pass again
    assert one_line(text) == safe


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("  two\n\tlines ")) == "two lines"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert one_line("x" * 12, 10) == "x" * 10 + " ..."
    assert one_line("x" * 400, None) == "x" * 400
    # A secret is removed before the text is cut, so that no half of one is left at the end.
    assert "sec" not in one_line("http://me:secret@host:5000/", 12)


HOSTILE = "a\x1b[2Jb\x9bc\x07\u202ed\ne"  # clears the screen, rings, writes backwards, begins a line
ESCAPED = r"a\x1b[2Jb\x9bc\x07\u202ed\ne"


def test_a_terminal_obeys_nothing_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable("Zürich 東京 ±1") == "Zürich 東京 ±1"
    assert one_line(ValueError(HOSTILE)) == ESCAPED.replace(r"\n", " ")
    assert columns([["x", HOSTILE]]) == f"x  {ESCAPED}"
    show(f"two\nlines\t{HOSTILE}")
    assert capsys.readouterr().out == "two\nlines   " + ESCAPED.replace(r"\n", "\n") + "\n"
    show("\ud800")  # a file's name that is not UTF-8
    assert capsys.readouterr().out == "\\ud800\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a|b", r"a\|b"),
        ("![x](http://host/x)", r"\!\[x\](http://host/x)"),
        ("`**x**`", r"\`\*\*x\*\*\`"),
        ("&lt;", "&amp;lt;"),
        ("ffdnet_d2sm_cpu train.lr=0.001", "ffdnet_d2sm_cpu train.lr=0.001"),
        (HOSTILE, ESCAPED.replace("\\", "\\\\").replace("[", r"\[")),
    ],
)
def test_markdown_shows_the_text_itself(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a=1", "`a=1`"), ("a`<b>``", "``` a`<b>`` ```"), ("", "`  `"), ("a\nb", r"`a\nb`")]
)
def test_a_code_span_ends_where_it_should(text: str, shown: str) -> None:
    assert markdown_code(text) == shown


def test_the_nearest_name_is_suggested() -> None:
    assert did_you_mean("vall", ["train", "val"]) == "; did you mean val?"
    assert did_you_mean("", ["train", "val"]) == ""
    assert did_you_mean("xyz", {"train": 1}, cutoff=0.0) == "; did you mean train?"
    assert did_you_mean("xyz", []) == ""


def test_a_long_list_is_cut() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcd", 2) == "a, b and 2 more"
    assert listed([]) == ""
    assert more(["a"]) == "" and more(["a", "b", "c"]) == " (and 2 more)"


def test_columns_are_aligned() -> None:
    assert columns([["name", "n"], ["a", "10"]]) == "name  n\na     10"
    assert columns([["name", "n"], ["a", "10"]], ruled=True) == "name  n\n----  --\na     10"


def test_the_module_needs_the_standard_library_alone() -> None:
    """The command line's help imports it, and must stay quick."""
    code = "import sys; before = set(sys.modules); import pipelines.text; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()} - {"pipelines", "d2sm"}
    assert loaded <= sys.stdlib_module_names
