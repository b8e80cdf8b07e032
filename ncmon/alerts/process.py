"""Rules about the training process and what watches it: numbers that are none, silence, losses on the way, cost."""

from __future__ import annotations

from collections.abc import Sequence

from ncmon.alerts.limits import Limits
from ncmon.alerts.spec import News, Past, Rule, Sight, Sign
from ncmon.model import Gap, Rejection, RunEnd

PAUSES = 5
"""A run that needs an hour for an epoch is silent for an hour: of its own pauses so many make a stall."""
FEWEST_WINDOWS = 3
"""Before which no pause is usual."""


def nonfinite(sight: Sight) -> Sequence[Sign]:
    """Look for samples that are NaN or infinite, in every layer and in the loss, and for parameters that are."""
    window, most = sight.evaluation.window, sight.limits.nonfinite_share
    signs = []
    if not window.head.finite:
        signs.append(Sign(bad=True, text="the classifier's parameters are not finite", layer="", value=None))
    for layer in sight.evaluation.layers:
        bad = int(layer.quality.get("nonfinite", 0.0))
        all_of = bad + int(layer.quality.get("samples", 0.0))
        if bad > most * all_of:
            text = f"{bad} of {all_of} samples have a feature that is NaN or infinite"
            signs.append(Sign(bad=True, text=text, layer=layer.key.name, value=bad / all_of))
            break  # What is broken here is broken in all layers behind it.
    if window.head.loss_nonfinite is not None and window.head.label_counts is not None:
        bad = int(window.head.loss_nonfinite.sum())
        all_of = bad + int(window.head.label_counts.sum())
        if bad > most * all_of and not signs:
            signs.append(Sign(bad=True, text=f"the loss of {bad} of {all_of} samples is NaN or infinite", value=bad))
    return signs


def stalled(past: Past, limits: Limits, now: float) -> Sequence[Sign]:
    """Compare the silence of a run with its usual pauses."""
    if past.windows < FEWEST_WINDOWS:
        most = limits.stalled_first_s
    else:
        most = max(limits.stalled_s, PAUSES * past.pause_s)
    silent = now - past.heard
    if silent <= most:
        return ()
    return [Sign(bad=True, text=f"nothing was heard for {silent:.0f} s; {most:.0f} s are allowed", value=silent)]


def failed(news: News) -> Sequence[Sign] | None:
    """Say that a training ended with an error."""
    if not isinstance(news, RunEnd) or news.status != "failed":
        return None
    return [Sign(bad=True, text=f"the training failed: {_line(news.text) or 'it gave no reason'}")]


def rank_silent(sight: Sight) -> Sequence[Sign]:
    """Look for ranks that were part of earlier windows and are no longer."""
    window = sight.evaluation.window
    gone = sorted(sight.past.ranks.difference(window.ranks))
    if not gone:
        return ()
    who = f"rank {gone[0]}" if len(gone) == 1 else f"{len(gone)} ranks ({', '.join(map(str, gone[:8]))})"
    text = f"{who} of {window.world_size} no longer sends anything: windows are partial"
    return [Sign(bad=True, text=text, value=float(len(gone)))]


def refused(news: News) -> Sequence[Sign] | None:
    """Say that a window was lost on the way, or was none."""
    if isinstance(news, Gap):
        at = f"epoch {news.epoch + 1}" if news.epoch >= 0 else f"step {news.step}"
        return [Sign(bad=True, text=f"a window of {news.split} ({at}) was lost: {_line(news.reason)}")]
    if isinstance(news, Rejection):
        return [Sign(bad=True, text=f"a message was refused ({news.code}): {_line(news.reason)}")]
    return None


def overhead(sight: Sight) -> Sequence[Sign] | None:
    """Compare what watching takes with the limit, unless the loop itself asked for every step."""
    window, most = sight.evaluation.window, sight.limits.overhead_share
    if window.overhead is None or window.exact or window.sampled_steps >= window.steps:
        return None
    if window.overhead <= 0.8 * most:
        return ()
    text = f"watching takes {100 * window.overhead:.1f} % of the training's time; {100 * most:g} % are allowed"
    return [Sign(bad=window.overhead > most, text=text, value=window.overhead)]


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


RULES = (
    Rule(
        name="nonfinite",
        title="values are not finite",
        severity="alert",
        meaning="Features, losses or parameters of a window are NaN or infinite. One window is enough.",
        advice="Run shows since when. Lower the learning rate, look at mixed precision and at the data of that step.",
        screen="run",
        limits=("nonfinite-share",),
        clear_after=3,
        judge_window=nonfinite,
    ),
    Rule(
        name="run-stalled",
        title="run stalled",
        severity="alert",
        meaning="A live run has been silent for 300 s, or for five of its usual pauses if that is longer.",
        advice="Is the process alive (`ps`, `nvidia-smi`)? Does it wait for data? `ncmon spool ls` shows what it kept.",
        screen="run",
        limits=("stalled-s", "stalled-first-s"),
        cooldown_s=1800.0,
        ends_with_run=True,
        judge_tick=stalled,
    ),
    Rule(
        name="run-failed",
        title="run failed",
        severity="alert",
        meaning="The training ended with an exception, and said so.",
        advice="Its own log says where. A run that is resumed under its id is live again.",
        screen="run",
        cooldown_s=0.0,
        judge_news=failed,
    ),
    Rule(
        name="rank-silent",
        title="rank silent",
        severity="alert",
        meaning="A rank that was part of earlier windows is missing in three windows in a row.",
        advice="Run marks partial windows. Look at that rank's process and log: is it alive, does it reach the daemon?",
        screen="run",
        raise_after=3,
        ends_with_run=True,
        judge_window=rank_silent,
    ),
    Rule(
        name="windows-refused",
        title="windows refused",
        severity="warning",
        meaning="A window was accepted and lost on the way, or a message could not become a window.",
        advice='`ncmon query "SELECT * FROM gap"` and `... rejected` give the reasons; `ncmon doctor` what to type.',
        screen="run",
        clear_after=20,
        judge_news=refused,
    ),
    Rule(
        name="overhead",
        title="overhead over budget",
        severity="warning",
        meaning="Watching took more than 5 % of the training's time in five windows in a row; where the loop asked for"
        " every step (every=1) nothing is said.",
        advice='Leave `every` at "auto", watch fewer layers (`ncmon_client.suggest_layers`), or allow more'
        " (`watch(overhead=...)`, `ncmon serve --alert overhead-share=0.1`).",
        screen="run",
        limits=("overhead-share",),
        raise_after=5,
        clear_after=3,
        ends_with_run=True,
        judge_window=overhead,
    ),
)
