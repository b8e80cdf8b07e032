"""The application: one worker reads the feed and posts a frozen snapshot; screens draw it.

Quitting this never touches training or data: ingest is another process.
"""

from __future__ import annotations

import asyncio
import bisect
import io
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from ncmon.alerts import RULES, title_of
from ncmon.cells import printable
from ncmon.errors import NcmonError, UsageError

# Read by Textual when it is imported. A monitor over ssh has no use for animations or for sixty frames a second.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_FPS", "15")

from textual.app import App, SystemCommand
from textual.command import CommandPalette
from textual.screen import Screen

from ncmon.feed import Reads, Selection, Snapshot
from ncmon.feeds import open_feeds
from ncmon.model import CLASSIFIER_INPUT, Alert
from ncmon.tui import garbage, keys, palette, sending, sheets
from ncmon.tui.keys import NcmonKeys
from ncmon.tui.leaving import Watchman
from ncmon.tui.look import RATES_S, SMOOTHING, Look, load, look_file, save
from ncmon.tui.messages import SnapshotReady
from ncmon.tui.place import Place, keep, places_file, recall
from ncmon.tui.plots import MOST_ZOOM, timeline
from ncmon.tui.screens.alerts import AlertsScreen
from ncmon.tui.screens.base import DataScreen, key_of
from ncmon.tui.screens.bounds import BoundsScreen
from ncmon.tui.screens.classes import ClassesScreen
from ncmon.tui.screens.compare import CompareScreen
from ncmon.tui.screens.help import HelpScreen
from ncmon.tui.screens.layers import LayersScreen
from ncmon.tui.screens.overview import OverviewScreen
from ncmon.tui.screens.run import RunScreen

SCREENS: dict[str, Callable[[], DataScreen]] = {
    "overview": OverviewScreen,
    "run": RunScreen,
    "layers": LayersScreen,
    "classes": ClassesScreen,
    "bounds": BoundsScreen,
    "compare": CompareScreen,
    "alerts": AlertsScreen,
}

sending.only_changes()

MOST_COPIED = 64_000
"""Characters: terminals and multiplexers drop longer ones without a word."""


class NcmonApp(App[None]):
    """The terminal UI of one feed."""

    CSS_PATH = "ncmon.tcss"
    TITLE = "ncmon"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"

    BINDINGS = NcmonKeys.BINDINGS

    def __init__(
        self,
        feed: Reads,
        *,
        clock: Callable[[], float] = time.time,
        ascii: bool = False,
        refresh_s: float | None = None,
        run_first: bool = False,
        look: Path | None = None,
        place: Place | None = None,
    ) -> None:
        """`look` is the file that keeps how the viewer likes to look (None: none), `place` where to begin."""
        super().__init__()
        self.clock = clock
        self.ascii_only = ascii
        self.set_class(ascii, "-ascii")
        self.look: Look = load(look)
        self.shown: Snapshot | None = None
        self.frozen_at: float | None = None
        self.zoom = 0
        self.marked: dict[str, None] = {}
        self.baseline: str | None = None
        self.alert_at: tuple[str, int] | None = None
        """The alert that A and { } mean."""
        self.export_to = Path.cwd()
        self._look_file = look
        self._feed = feed
        self._refresh_s = refresh_s
        self._run_first = run_first
        self._selection = Selection(view="overview")
        self._held: Snapshot | None = None
        self._refreeze = False
        self._wake = threading.Event()
        self._stopping = False
        self._place = place
        self._running_in: asyncio.AbstractEventLoop | None = None
        self.began: Callable[[], object] | None = None
        """Called when the screen is up."""
        for theme in palette.themes():
            self.register_theme(theme)
        self.theme = self.look.theme if self.look.theme in self.available_themes else palette.DARK

    def on_mount(self) -> None:
        """Show the overview and begin to read."""
        self._running_in = asyncio.get_running_loop()
        for name, screen in SCREENS.items():
            self.install_screen(screen(), name)
        self.push_screen("overview")
        if self._run_first:
            self.action_screen("run")
        self.run_worker(self._read, thread=True, exclusive=True, name="feed")
        if self._place is not None:
            self._go_back_to(self._place)
        if self.began is not None:
            # Textual has taken the signals that it wants.
            self.call_after_refresh(self.began)

    def on_unmount(self) -> None:
        """Let the worker end."""
        self._stopping = True
        self._wake.set()
        self.keep_look()

    def _read(self) -> None:
        """The worker: one read a second, or at once when something else is looked at."""
        try:
            while not self._stopping:
                self._wake.clear()
                snapshot = self._feed.read(self._selection)
                if self._stopping:
                    break
                self.post_message(SnapshotReady(snapshot))
                self._wake.wait(RATES_S[self.look.rate] if self._refresh_s is None else self._refresh_s)
        finally:
            self._feed.close()

    def on_snapshot_ready(self, message: SnapshotReady) -> None:
        """Show a snapshot, or keep it for later while the picture is frozen."""
        if self._place is not None and message.snapshot.runs:
            # Gone back to a run that was deleted meanwhile: the newest instead.
            if self._place.run_id not in {None, *(summary.run.run_id for summary in message.snapshot.runs)}:
                self.select(run_id=None)
            self._place = None
        self._held = message.snapshot
        before = self.shown
        if self.frozen_at is None:
            self.shown = message.snapshot
        elif self._refreeze and message.snapshot.selection == self._selection:
            # Something else is looked at: that picture is held from now on.
            self.shown, self.frozen_at, self._refreeze = message.snapshot, self.clock(), False
        screen = self.screen if self.screen_stack else None
        if before is not None and self.shown is not None and before.version == self.shown.version:
            if isinstance(screen, DataScreen):
                screen.tick(self.shown)
        else:
            self._draw()

    def _draw(self) -> None:
        if self.screen_stack and isinstance(screen := self.screen, DataScreen):
            screen.again()

    @property
    def place(self) -> Place:
        """Where the viewer is; asked from another thread when the session breaks off."""
        looking, screen = self._selection, self.screen_stack[-1] if self.screen_stack else None
        overview = self.get_screen("overview") if self.is_screen_installed("overview") else None
        return Place(
            screen=looking.view,
            run_id=looking.run_id,
            layer=looking.layer,
            split=looking.split,
            index=looking.index,
            step=looking.step,
            marked=tuple(self.marked),
            baseline=self.baseline,
            filter=overview.filter if isinstance(overview, OverviewScreen) else "",
            zoom=self.zoom,
            large=screen.large if isinstance(screen, DataScreen) else None,
        )

    def _go_back_to(self, place: Place) -> None:
        """Show what was shown when the last session broke off."""
        self.marked, self.baseline = dict.fromkeys(place.marked), place.baseline
        self.zoom = min(max(place.zoom, 0), MOST_ZOOM)
        if isinstance(overview := self.get_screen("overview"), OverviewScreen):
            overview.filter = place.filter
        self.select(run_id=place.run_id, layer=place.layer or CLASSIFIER_INPUT, split=place.split)
        self.select(index=max(place.index, 0), step=place.step)
        if place.screen in SCREENS:
            self.action_screen(place.screen)
        if place.large and isinstance(screen := self.screen, DataScreen) and place.large in screen.PANELS:
            screen.large = place.large

    def leave(self) -> None:
        """End, from any thread: nobody is there any more."""
        if self._running_in is not None:
            self._running_in.call_soon_threadsafe(self.exit)

    def keep_look(self) -> None:
        """Save how the viewer likes to look."""
        self.look.theme = self.theme
        save(self.look, self._look_file)

    def select(self, **changes: object) -> None:
        """Look at something else; the worker reads it at once. The fields are those of `Selection`."""
        before = self._selection
        run_id = changes.get("run_id", before.run_id)
        if run_id != before.run_id:
            changes = {"layer": CLASSIFIER_INPUT, "split": None, "step": None, "index": 0} | changes
        self._selection = replace(before, **changes)  # type: ignore[arg-type]
        if self._selection != before:
            self._refreeze = self.frozen_at is not None
            self._wake.set()

    @property
    def selection(self) -> Selection:
        """What is looked at."""
        return self._selection

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
        metrics = {"layers": LayersScreen.metric, "compare": CompareScreen.metric}
        changes: dict[str, object] = {"view": name}
        if name in metrics:
            changes["metric"] = metrics[name](self.look)
        if name == "compare":
            changes["marked"] = tuple(self.marked)
        self.select(**changes)

    def action_alert(self, by: int) -> None:
        """Go to the next alert that presses, or to the one before; to those that are open where none presses."""
        if self.shown is None:
            return
        alerts = self.shown.open_alerts or tuple(alert for alert in self.shown.alerts if alert.open)
        if not alerts:
            self.notify("no alert is open", timeout=2)
            return
        keys = [key_of(alert) for alert in alerts]
        if self.alert_at in keys:
            place = (keys.index(self.alert_at) + by) % len(keys)
        else:
            place = 0 if by > 0 else len(keys) - 1
        self.alert_at = keys[place]
        if isinstance(self.screen, AlertsScreen):
            self.screen.again()
        else:
            self.go_to(alerts[place])

    def go_to(self, alert: Alert) -> None:
        """Show where an alert can be seen, and what it says."""
        self.alert_at = key_of(alert)
        rule = next((rule for rule in RULES if rule.name == alert.rule), None)
        split = {"split": alert.split} if alert.split else {}
        layer = {"layer": alert.layer} if alert.layer else {}
        index = {"index": alert.class_index} if alert.class_index is not None else {}
        self.select(run_id=alert.run_id, **layer, **split, **index)
        self.action_screen(rule.screen if rule is not None else "run")
        if isinstance(self.screen, ClassesScreen) and index:
            self.screen.keep(alert.run_id)
        text = f"{title_of(alert.rule)}: {printable(alert.text)}"
        self.notify(text, severity="information" if alert.severity == "info" else "warning", timeout=8, markup=False)

    def action_acknowledge(self) -> None:
        """Say that the alert under the cursor, or the last one gone to, was seen."""
        alerts = self.shown.alerts if self.shown is not None else ()
        if isinstance(self.screen, AlertsScreen):
            self.alert_at = self.screen.cursor
        alert = next((alert for alert in alerts if key_of(alert) == self.alert_at), None)
        if alert is None:
            self.notify("which alert? } goes to the next one, 7 lists them", timeout=4)
        elif alert.acknowledged is None:
            database = self.shown.database if self.shown is not None else None
            self.run_worker(partial(self._acknowledge, alert, database), thread=True, name="acknowledge")

    def _acknowledge(self, alert: Alert, database: Path | None) -> None:
        try:
            self._feed.acknowledge(alert, database)
        except NcmonError as error:
            self.call_from_thread(self.notify, str(error), severity="error", timeout=8, markup=False)
            return
        self._wake.set()
        self.call_from_thread(self.notify, f"acknowledged: {title_of(alert.rule)}", timeout=2)

    def action_freeze(self) -> None:
        """Hold the picture, or let it go on."""
        if self.frozen_at is None:
            self.frozen_at = self.clock()
        else:
            self.frozen_at = None
            self.shown = self._held or self.shown
        self._draw()

    def action_follow(self) -> None:
        """The last window, whatever comes, not frozen."""
        self.frozen_at = None
        self.select(step=None)
        self.shown = self._held or self.shown
        self._draw()

    def action_crosshair(self) -> None:
        """Look at one moment on all screens, and back to the last one."""
        if self._selection.step is not None:
            self.select(step=None)
        elif steps := self._steps():
            self.select(step=steps[-1])

    def action_travel(self, by: int) -> None:
        """Move in time by windows; past the last one it follows the run again."""
        steps = self._steps()
        if not steps:
            return
        now = self._selection.step
        place = len(steps) - 1 if now is None else bisect.bisect_right(steps, now) - 1
        if now is None and by > 0:
            return
        self.travel_to(max(place + by, 0))

    def travel_to(self, place: int) -> None:
        """Look at one window, by its place; past the last one it follows the run."""
        steps = self._steps()
        if steps:
            self.select(step=steps[place] if place < len(steps) else None)

    def _steps(self) -> list[int]:
        columns = timeline(self.shown.detail) if self.shown is not None and self.shown.detail is not None else None
        return [] if columns is None else columns.step.tolist()

    def action_zoom(self, by: int) -> None:
        """Show half the time, twice the time, or (0) all of it."""
        self.zoom = min(max(self.zoom + by, 0), MOST_ZOOM) if by else 0
        self._draw()

    def action_smooth(self) -> None:
        """Smooth over more windows, then not at all."""
        self.look.smooth = (self.look.smooth + 1) % len(SMOOTHING)
        self._draw()

    def action_rate(self) -> None:
        """How often to look."""
        self.look.rate = (self.look.rate + 1) % len(RATES_S)
        self._wake.set()
        self.notify(f"every {RATES_S[self.look.rate]:g} s", timeout=2)

    def action_copy(self) -> None:
        """Copy what is shown (OSC 52, which reaches the local clipboard over ssh)."""
        if isinstance(screen := self.screen, DataScreen) and (sheet := screen.copied()) is not None:
            text = sheets.tabbed(sheet)
            if len(text) > MOST_COPIED:
                self.notify("too much for a clipboard over a terminal: e writes it to a file", severity="warning")
                return
            self.copy_to_clipboard(text)
            self.notify(f"copied {len(sheet[1])} lines", timeout=2)

    def action_export(self) -> None:
        """Write what is shown to a new CSV file in the directory where ncmon was started."""
        screen = self.screen
        if not isinstance(screen, DataScreen) or (sheet := screen.sheet()) is None:
            return
        run = self.shown.detail.run.name if self.shown is not None and self.shown.detail is not None else "runs"
        if self.is_web:
            # To who looks, not to the machine that the page comes from.
            name = f"{sheets.file_name(f'{run}-{screen.id}')}.csv"
            self.deliver_text(io.StringIO(sheets.csv_text(sheet)), save_filename=name, mime_type="text/csv")
            return
        try:
            path = sheets.write(sheet, self.export_to, f"{run}-{screen.id}")
        except OSError as error:
            self.notify(f"cannot write to {self.export_to}: {error.strerror}", severity="error")
            return
        self.notify(f"wrote {path.name}", timeout=4)

    def action_next_theme(self) -> None:
        """The next theme."""
        place = palette.THEMES.index(self.theme) + 1 if self.theme in palette.THEMES else 0
        self.theme = palette.THEMES[place % len(palette.THEMES)]
        self.call_after_refresh(self._draw)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield what the command palette offers: everything that a key does here, and the themes."""
        seen: set[str] = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.action in seen or binding.system or not binding.description:
                continue
            seen.add(binding.action)
            key = self.get_key_display(binding)

            async def act(action: str = binding.action, node: object = active.node) -> None:
                await self.run_action(action, node)  # type: ignore[arg-type]

            yield SystemCommand(binding.description, f"key {key}", act)
        for name in palette.THEMES:
            yield SystemCommand(f"Theme: {name}", "colours of the screen", partial(setattr, self, "theme", name))
        yield SystemCommand("Quit", "training and daemon go on", self.exit)

    def action_command_palette(self) -> None:
        """Open the palette; Textual's own begins with a text that is not ASCII."""
        if not CommandPalette.is_open(cast("App[object]", self)):
            self.push_screen(CommandPalette(id="--command-palette", placeholder="search what there is to do"))

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


def run_ui(*targets: str, theme: str | None = None, ascii: bool = False, run_first: bool = False) -> int:
    """Run the terminal UI on targets (none: this user's daemon) until the user leaves; return the exit code.

    Raises `UsageError` for a target that cannot be, or a theme that there is not.
    """
    place = recall(places_file(), targets)
    app = NcmonApp(
        open_feeds(targets), ascii=ascii or not speaks_unicode(), run_first=run_first, look=look_file(), place=place
    )
    if theme is not None:
        if theme not in app.available_themes:
            known = [*palette.THEMES, *sorted(set(app.available_themes) - set(palette.THEMES))]
            raise UsageError(f"no theme is named {theme!r}; there is {', '.join(known)}")
        app.theme = theme
    app.set_keymap(keys.load(keys.keys_file(), keys.known(NcmonApp, *(type(screen()) for screen in SCREENS.values()))))

    def keep_all() -> None:
        app.keep_look()
        keep(places_file(), targets, app.place)

    watchman = Watchman(app.leave, keep_all)

    def began() -> None:
        watchman.obey()
        garbage.begin()

    app.began = began
    watchman.start()
    try:
        app.run()
    finally:
        watchman.stop()
    if watchman.dropped:
        return 128 + watchman.told
    keep(places_file(), targets, None)
    return app.return_code or 0
