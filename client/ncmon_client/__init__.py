"""ncmon-client: watch neural collapse from inside a PyTorch training process.

    import ncmon_client

    monitor = ncmon_client.watch(model, criterion=criterion, optimizer=optimizer, run="digits")

Importing this loads neither torch nor zmq; what needs them is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ncmon_client._version import __version__
from ncmon_client.errors import ClientError, ConfigError

if TYPE_CHECKING:
    from ncmon_client.monitor import Monitor
    from ncmon_client.status import Status
    from ncmon_client.suggest import suggest_layers
    from ncmon_client.watching import watch

__all__ = ("ClientError", "ConfigError", "Monitor", "Status", "__version__", "suggest_layers", "watch")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ncmon_client' has no attribute {name!r}")
    try:
        from ncmon_client import monitor, suggest, watching
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ConfigError(
            "ncmon_client watches PyTorch models and found no torch in this environment; install torch first"
        ) from None
    return getattr({"suggest_layers": suggest, "watch": watching}.get(name, monitor), name)
