"""What importing the client loads, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["torch", "zmq", "numpy", "msgspec", "textual"])
def test_importing_the_client_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import sys, ncmon_client; print({module!r} in sys.modules)") == "False"


def test_the_wire_loads_neither_torch_nor_zmq() -> None:
    code = "import sys, ncmon_client.wire; print('torch' in sys.modules, 'zmq' in sys.modules)"
    assert loaded(code) == "False False"


def test_watching_without_a_daemon_thread_loads_no_zmq() -> None:
    code = (
        "import sys, torch, ncmon_client;"
        "ncmon_client.watch(torch.nn.Linear(2, 2), endpoint='ipc:///nonexistent/s');"
        "print('zmq' in sys.modules)"
    )
    assert loaded(code) == "False"


def test_without_torch_the_client_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ncmon_client\n"
        "try: ncmon_client.watch\n"
        "except ncmon_client.ConfigError as error: print(error)"
    )
    assert "install torch" in loaded(code)
