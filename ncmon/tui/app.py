"""The application: one worker reads the feed and posts a frozen snapshot; screens draw it.

Quitting this never touches training or data: ingest is another process.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import ClassVar

from ncmon.errors import UsageError

# Read by Textual when it is imported. A monitor over ssh has no use for animations or for sixty frames a second.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_FPS", "15")

from textual.app import App
from textual.binding import Binding, BindingType

from ncmon.feed import Feed, Selection, Snapshot, open_feed
from ncmon.model import CLASSIFIER_INPUT
from ncmon.tui.messages import SnapshotReady
from ncmon.tui.screens.base import DataScreen
from ncmon.tui.screens.help import HelpScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import RunScreen

REFRESH_S = 1.0
THEMES = ("textual-dark", "textual-light", "textual-ansi", "nord", "solarized-light")


class NcmonApp(App[None]):
    """The terminal UI of one feed."""

    CSS_PATH = "ncmon.tcss"
    TITLE = "ncmon"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "screen('overview')", "Over"),
        Binding("2", "screen('run')", "Run"),
        Binding("p,space", "freeze", "Freeze", key_display="p"),
        Binding("f", "follow", "Follow", show=False),
        Binding("y", "copy", "Copy", show=False),
        Binding("T", "next_theme", "Theme", show=False),
        Binding("colon", "command_palette", "Palette", show=False),
        Binding("question_mark,f1", "help", "Help", key_display="?"),
    ]

    def __init__(
        self,
        feed: Feed,
        *,
        clock: Callable[[], float] = time.time,
        ascii: bool = False,
        refresh_s: float = REFRESH_S,
        run_first: bool = False,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.ascii_only = ascii
        self.shown: Snapshot | None = None
        self.frozen_at: float | None = None
        self._feed = feed
        self._refresh_s = refresh_s
        self._run_first = run_first
        self._selection = Selection()
        self._held: Snapshot | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._parent_pid = os.getppid()

    def on_mount(self) -> None:
        """Show the overview and begin to read."""
        self.install_screen(OverviewScreen(), "overview")
        self.install_screen(RunScreen(), "run")
        self.push_screen("overview")
        if self._run_first:
            self.push_screen("run")
        self.run_worker(self._read, thread=True, exclusive=True, name="feed")
        self.set_interval(1.0, self._look_around)

    def on_unmount(self) -> None:
        """Let the worker end."""
        self._stopping = True
        self._wake.set()

    def _read(self) -> None:
        """The worker: one read a second, or at once when something else is looked at."""
        try:
            while not self._stopping:
                self._wake.clear()
                snapshot = self._feed.read(self._selection)
                if self._stopping:
                    break
                self.post_message(SnapshotReady(snapshot))
                self._wake.wait(self._refresh_s)
        finally:
            self._feed.close()

    def on_snapshot_ready(self, message: SnapshotReady) -> None:
        """Show a snapshot, or keep it for later while the picture is frozen."""
        self._held = message.snapshot
        if self.frozen_at is None:
            self.shown = message.snapshot
        self._draw()

    def _draw(self) -> None:
        if self.screen_stack and isinstance(screen := self.screen, DataScreen):
            screen.again()

    def _look_around(self) -> None:
        """Leave when the terminal is gone: Textual would spin on a closed one."""
        if os.getppid() != self._parent_pid:
            self.exit()
            return
        poll = select.poll()
        poll.register(sys.__stdin__.fileno() if sys.__stdin__ is not None else 0, select.POLLHUP | select.POLLERR)
        try:
            if any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
                self.exit()
        except OSError:
            self.exit()

    def select(self, *, run_id: str | None = None, layer: str | None = None) -> None:
        """Look at another run or another layer; the worker reads it at once."""
        before = self._selection
        if run_id is not None and run_id != before.run_id:
            self._selection = Selection(run_id=run_id, layer=layer or CLASSIFIER_INPUT)
        elif layer is not None:
            self._selection = Selection(run_id=before.run_id, layer=layer)
        if self._selection != before:
            # A picture of something else cannot stay frozen.
            self.frozen_at = None
            self._wake.set()

    def open_run(self, run_id: str) -> None:
        """Show one run."""
        self.select(run_id=run_id)
        self.action_screen("run")

    def action_screen(self, name: str) -> None:
        """Go to a screen; the overview is the root."""
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if name != "overview":
            self.push_screen(name)

    def action_freeze(self) -> None:
        """Hold the picture, or let it go on."""
        if self.frozen_at is None:
            self.frozen_at = self.clock()
        else:
            self.frozen_at = None
            self.shown = self._held or self.shown
        self._draw()

    def action_follow(self) -> None:
        """The newest run, the classifier's input, not frozen."""
        self._selection = Selection()
        self.frozen_at = None
        self._wake.set()

    def action_copy(self) -> None:
        """Copy the line of values (OSC 52, which reaches the local clipboard over ssh)."""
        screen = self.screen
        if isinstance(screen, RunScreen) and (text := screen.values_text()):
            self.copy_to_clipboard(text)
            self.notify("copied", timeout=2)

    def action_next_theme(self) -> None:
        """The next theme."""
        names = [name for name in THEMES if name in self.available_themes]
        place = names.index(self.theme) + 1 if self.theme in names else 0
        self.theme = names[place % len(names)]

    def action_help(self) -> None:
        """Open the help."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())


def speaks_unicode() -> bool:
    """Whether the locale can show braille; in the C locale it is lost without a word.

    Asked of the environment, not of Python, which takes the C locale for UTF-8. Where nothing is said (a container),
    terminals of today speak UTF-8.
    """
    said = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    return not said or "utf" in said.lower()


def run_ui(target: str | None, *, theme: str | None = None, ascii: bool = False, run_first: bool = False) -> int:
    """Run the terminal UI on a target until the user leaves; return the exit code.

    Raises `UsageError` for a target that cannot be, or a theme that there is not.
    """
    app = NcmonApp(open_feed(target), ascii=ascii or not speaks_unicode(), run_first=run_first)
    if theme is not None:
        if theme not in app.available_themes:
            raise UsageError(f"no theme is named {theme!r}; there is {', '.join(sorted(app.available_themes))}")
        app.theme = theme
    app.run()
    return app.return_code or 0
