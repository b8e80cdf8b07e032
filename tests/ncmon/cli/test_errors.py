"""What goes wrong is one line on stderr and an exit code: 2 for what was typed, 1 for a failure, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ncmon.cli import COMMANDS
from tests.ncmon.cli.conftest import Run

CASES = [
    (("nosuchcommand",), 2, "no command is named 'nosuchcommand'"),
    (("shwo",), 2, "show"),
    (("runs", "--nosuch"), 2, "--nosuch"),
    (("runs", "--limit", "0"), 2, "--limit"),
    (("runs", "--format", "xml"), 2, "xml"),
    (("show",), 2, "RUN"),
    (("show", "nosuchrun"), 1, "no run is named 'nosuchrun'"),
    (("show", "digits-bm"), 1, "digits-bn"),
    (("show", "digits-bn", "--layer", "nosuch"), 1, "no layer 'nosuch'"),
    (("show", "digits-bn", "--split", "tset"), 1, "test"),
    (("show", "digits-bn", "--epoch", "999"), 1, "no window of epoch 999"),
    (("history", "digits-bn"), 2, "--metric"),
    (("history", "digits-bn", "--metric", "nc1_pniv"), 1, "nc1_pinv"),
    (("history", "digits-bn", "--metric", "intra_cos"), 1, "one number a class"),
    (("history", "digits-bn", "--metric", "intra_cos", "--class", "99"), 1, "no class '99'"),
    (("history", "digits-bn", "--metric", "alpha", "--follow", "--format", "json"), 2, "jsonl"),
    (("bounds", "digits-bn", "--layer", "blocks.0"), 1, "classifier's input"),
    (("metrics", "nosuch"), 1, "no metric is named"),
    (("metrics", "--markdown", "--format", "json"), 2, "--markdown"),
    (("query", "DELETE FROM run"), 2, "read-only"),
    (("query", "SELEC 1"), 2, "SQL"),
    (("runs", "--db", "/nosuch/file.db"), 1, "no such database"),
    (("runs", "--db", "/etc/passwd"), 1, "not an SQLite database"),
    (("watch", "/nosuch/file.db"), 2, "/nosuch/file.db"),
    (("watch", "tcp://somewhere"), 1, "expected tcp://HOST:PORT"),
    (("watch", "tcp://somewhere:1", "--once"), 1, "needs a key"),
    (("keys", "new", "x"), 2, "--write"),
    (("keys", "new", "x", "--write"), 1, "ncmon keys init"),
    (("keys", "revoke", "nobody"), 1, "no key is named 'nobody'"),
    (("spool", "push", "nosuch"), 1, "no spool file is named 'nosuch'"),
    (("spool", "rm"), 2, "--all"),
    (("serve", "--headless", "--listen", "tcp://0.0.0.0:1"), 1, "tcp needs keys"),
    (("serve", "--headless", "--listen", "nonsense"), 1, "expected ipc://"),
    (("demo", "--epochs", "0"), 2, "--epochs"),
    (("runs", "--config", "lr<big"), 2, "expected a number behind <"),
    (("runs", "--config", "<"), 2, "no condition"),
    (("runs", "--since", "yesterday"), 2, "no date"),
    (("runs", "--status", "dead"), 2, "dead"),
    (("runs", "--where", "nc1_pniv<1"), 1, "nc1_pinv"),
    (("runs", "--metric", "intra_cos"), 1, "intra_cos_min"),
    (("runs", "--sort", "epohcs"), 1, "epochs"),
    (("compare", "run0"), 2, "two runs"),
    (("compare", "run0", "vit-small-wd1e-4"), 2, "two runs"),
    (("compare", "run0", "run1", "--metric", "nosuch"), 1, "no metric"),
    (("compare", "run0", "run1", "--layer", "nosuch"), 1, "no layer"),
    (("compare", "run0", "run1", "--split", "tset"), 1, "test"),
    (("tag", "run0", "nosuch", "--remove"), 1, "no tag 'nosuch'"),
    (("tag", "run0", "a\nb"), 2, "cannot be a tag"),
    (("rename", "run0", " "), 2, "cannot be a name"),
    (("note", "run0", "x", "--clear"), 2, "--clear"),
    (("delete",), 2, "RUN"),
    (("delete", "nosuchrun", "--yes"), 1, "no run is named"),
    (("prune", "--yes"), 2, "--arrays"),
    (("prune", "--runs", "--yes"), 2, "delete everything"),
    (("prune", "--arrays", "run0", "--name", "x", "--yes"), 2, "not both"),
    (("prune", "--thin", "1"), 2, "--thin"),
    (("prune", "--compact", "run0"), 2, "whole database"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "says"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_mistake_is_one_line_that_leads_on(run: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == code, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("ncmon")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ncmon.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_process_says_it_likewise(made: Path) -> None:
    done = command("show", "nosuchrun", NCMON_DB=str(made))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nosuchrun" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_failure(made: Path) -> None:
    history = f"{sys.executable} -m ncmon.cli history digits-bn --metric alpha --format csv"
    script = f"{history} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "NCMON_DB": str(made)}, check=True
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_a_terminal_of_few_letters_is_no_failure(made: Path) -> None:
    done = command("show", "run3", NCMON_DB=str(made), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_that_takes_time() -> None:
    """`ncmon --help` has to come at once: no numpy, torch, zmq, textual or SQLite."""
    code = (
        "import sys\nfrom ncmon.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'numpy', 'torch', 'zmq', 'textual', 'sqlite3', 'rich', 'msgspec'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Watch neural collapse" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert "Example" in done.stdout
    assert f"\n    ncmon {name}" in done.stdout
    assert f"\n  {name} " in run("--help").stdout


def test_no_command_at_all_is_the_help(run: Run) -> None:
    assert run().stdout == run("--help").stdout
    assert run("--version").stdout.startswith("ncmon, version")
