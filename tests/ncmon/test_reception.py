"""Sessions and turns, with a fake ledger in the place of the store and no socket at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from ncmon.collector import Collector, Ready
from ncmon.errors import StoreError
from ncmon.ingest import Arrival
from ncmon.model import Rejection, Run, RunEnd
from ncmon.reception import CREDIT_MESSAGES, CREDIT_SHARES, MAX_STREAMS, Complaints, Reception, printable
from ncmon_client import wire
from tests.factories import make_window
from tests.messages import STREAM, make_gap, make_info, window_frames

PEER, OTHER = b"\0peer", b"\0other"


class Ledger:
    """What the store would say."""

    def __init__(self) -> None:
        self.next: dict[bytes, int] = {}
        self.runs: list[Run] = []
        self.broken = False

    def stream_next(self, stream: bytes) -> int | None:
        if self.broken:
            raise StoreError("the disk is full")
        return self.next.get(stream)

    def put_run(self, run: Run, stream: bytes, *, now: float, rank: int = 0) -> None:
        self.runs.append(run)
        self.next.setdefault(stream, 0)

    def attempt(self, stream: bytes) -> int:
        return 1


class Desk:
    """A reception with its ledger; `commit` plays the store."""

    def __init__(self, *, world: int = 1) -> None:
        self.ledger = Ledger()
        self.world = world
        log = logging.getLogger("ncmon.test")
        self.reception = Reception(
            ledger=self.ledger, collector=Collector(), log=log, complaints=Complaints(log, lambda: 0.0)
        )

    def say(self, frames: Sequence[bytes], *, peer: bytes = PEER) -> list[Ready]:
        return self.reception.receive(peer, frames, now=0.0, wall=1.0)

    def answers(self) -> list[wire.Meta]:
        answers, self.reception.answers = self.reception.answers, []
        return [wire.decode(frames).meta for _, frames in answers]

    def hello(self, *, peer: bytes = PEER, stream: bytes = STREAM, **fields: Any) -> list[wire.Meta]:
        info = make_info(**({"world_size": self.world} | fields))
        self.say(wire.encode(wire.Hello(versions=[1], run=info), stream=stream), peer=peer)
        return self.answers()

    def commit(self, ready: Sequence[Ready]) -> None:
        origins = [origin for one in ready for origin in one.origins]
        for origin in origins:
            self.ledger.next[origin.stream] = max(self.ledger.next.get(origin.stream, 0), origin.seq + 1)
        self.reception.stored(origins)


def gap(seq: int, *, stream: bytes = STREAM, **fields: Any) -> list[bytes]:
    return wire.encode(make_gap(**fields), stream=stream, seq=seq)


def window(seq: int, **fields: Any) -> list[bytes]:
    return window_frames(make_window(layers=1, step=100 + seq), seq=seq, **fields)


def test_hello_is_answered_with_what_the_store_expects() -> None:
    desk = Desk()
    desk.ledger.next[STREAM] = 7
    [welcome] = desk.hello()
    assert isinstance(welcome, wire.Welcome)
    assert (welcome.version, welcome.next, welcome.credit_messages) == (1, 7, CREDIT_MESSAGES)


def test_only_an_unknown_stream_introduces_its_run() -> None:
    """A client that comes back because the acknowledgement of its END was lost must not make the run live again."""
    desk = Desk()
    desk.hello()
    assert [run.run_id for run in desk.ledger.runs] == ["run"]
    desk.hello(peer=OTHER)
    assert len(desk.ledger.runs) == 1


def test_a_message_in_turn_is_acknowledged_when_it_is_stored_and_not_before() -> None:
    desk = Desk()
    desk.hello()
    ready = desk.say(window(0))
    assert isinstance(ready[0].item, Arrival)
    assert desk.answers() == []
    desk.commit(ready)
    assert desk.answers() == [wire.Ack(next=1)]


def test_a_batch_is_acknowledged_once() -> None:
    desk = Desk()
    desk.hello()
    desk.commit([one for seq in range(5) for one in desk.say(gap(seq))])
    assert desk.answers() == [wire.Ack(next=5)]


def test_a_duplicate_is_acknowledged_again_and_not_stored() -> None:
    desk = Desk()
    desk.hello()
    desk.commit(desk.say(gap(0)))
    desk.answers()
    assert desk.say(gap(0)) == []
    assert desk.answers() == [wire.Ack(next=1)]
    assert desk.reception.counters.duplicates == 1


def test_a_duplicate_of_what_is_not_stored_yet_is_not_acknowledged() -> None:
    desk = Desk()
    desk.hello()
    desk.say(gap(0))
    assert desk.say(gap(0)) == []
    assert desk.answers() == [wire.Ack(next=0)]


def test_a_hole_is_asked_for_once() -> None:
    desk = Desk()
    desk.hello()
    for seq in (2, 3, 4):
        assert desk.say(gap(seq)) == []
    assert desk.answers() == [wire.Nack(next=0)]
    desk.say(gap(0))
    desk.say(gap(2))
    assert desk.answers() == [wire.Nack(next=1)]


@pytest.mark.parametrize("known", [True, False])
def test_who_has_not_said_hello_on_this_connection_is_asked_to(known: bool) -> None:
    desk = Desk()
    if known:
        desk.hello()
    assert desk.say(gap(0), peer=OTHER) == []
    assert desk.answers() == [wire.Reset()]


def test_a_new_connection_takes_the_stream_over() -> None:
    desk = Desk()
    desk.hello()
    desk.commit(desk.say(gap(0)))
    desk.answers()
    [welcome] = desk.hello(peer=OTHER)
    assert isinstance(welcome, wire.Welcome)
    assert welcome.next == 1
    # What the old connection still had in its pipe.
    assert desk.say(gap(1)) == []
    assert desk.answers() == [wire.Reset()]
    assert len(desk.say(gap(1), peer=OTHER)) == 1


def test_a_share_that_waits_for_other_ranks_is_not_acknowledged_by_a_new_hello() -> None:
    desk = Desk(world=2)
    desk.hello()
    assert desk.say(window(0, world_size=2)) == []
    [welcome] = desk.hello(peer=OTHER)
    assert isinstance(welcome, wire.Welcome)
    assert welcome.next == 0
    # The client sends it again; it waits once.
    assert desk.say(window(0, world_size=2), peer=OTHER) == []
    desk.answers()
    desk.reception.remind()
    assert desk.answers() == [wire.Ack(next=0)]
    second = bytes(reversed(STREAM))
    desk.hello(stream=second, rank=1, peer=b"2")
    [ready] = desk.say(window(0, stream=second, rank=1, world_size=2), peer=b"2")
    assert len(ready.origins) == 2
    desk.commit([ready])
    assert desk.answers() == [wire.Ack(next=1), wire.Ack(next=1)]


def corrupt(frames: list[bytes]) -> list[bytes]:
    return [*frames[:-1], frames[-1][:-1] + bytes([frames[-1][-1] ^ 1])]


def future(frames: list[bytes]) -> list[bytes]:
    return [frames[0][:4] + b"\x63\x00" + frames[0][6:], *frames[1:]]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (corrupt(window(1)), "crc"),
        (future(window(1)), "version"),
        (window(1, run_id="other"), "run"),
        (window(1, rank=1, world_size=2), "run"),
        (window(1, n_classes=5), "run"),
        (wire.encode(make_gap(split="x" * 300), stream=STREAM, seq=1), "meta"),
        (wire.encode(make_gap(step=2**63), stream=STREAM, seq=1), "meta"),
        (wire.encode(make_gap(time=float("nan")), stream=STREAM, seq=1), "nonfinite"),
        ([window(1)[0]], "frames"),
        (window(1) + [b""] * 30, "frames"),
    ],
)
def test_a_poisoned_message_takes_its_turn_as_a_rejection(frames: list[bytes], code: str) -> None:
    """Its neighbours are stored, and it is never asked for again."""
    desk = Desk()
    desk.hello()
    ready = [*desk.say(window(0)), *desk.say(frames), *desk.say(window(2))]
    assert [type(one.item) for one in ready] == [Arrival, Rejection, Arrival]
    rejection = ready[1].item
    assert isinstance(rejection, Rejection)
    assert (rejection.code, rejection.run_id, rejection.seq, rejection.time) == (code, "run", 1, 1.0)
    assert rejection.reason
    assert 0 < len(rejection.head) <= 4096
    desk.commit(ready)
    assert desk.answers() == [wire.Ack(next=3)]
    assert desk.reception.counters.rejected == 1


def test_of_a_share_the_numbers_are_looked_at_before_it_waits_for_others() -> None:
    desk = Desk(world=2)
    desk.hello()
    [ready] = desk.say(window(0, world_size=2, sampled_steps=10**6))
    assert isinstance(ready.item, Rejection)
    assert ready.item.code == "counts"


def test_poison_of_a_stranger_is_answered_like_any_message_of_a_stranger() -> None:
    desk = Desk()
    assert desk.say(corrupt(window(0))) == []
    assert desk.answers() == [wire.Reset()]


@pytest.mark.parametrize("frames", [[], [b""], [b"GET / HTTP/1.1\r\n"], [b"\0" * 36, b""], [b"x"] * 40])
def test_noise_is_dropped_and_counted(frames: list[bytes]) -> None:
    desk = Desk()
    assert desk.say(frames) == []
    assert desk.answers() == []
    assert desk.reception.counters.refused == 1


def test_what_only_the_daemon_says_is_ignored() -> None:
    desk = Desk()
    for meta in (wire.Ack(next=1), wire.Reset(), wire.Refuse(code="x", text="y")):
        assert desk.say(wire.encode(meta, stream=STREAM)) == []
    assert desk.answers() == []


def refusal(answers: list[wire.Meta]) -> wire.Refuse:
    [answer] = answers
    assert isinstance(answer, wire.Refuse)
    assert answer.text
    return answer


def test_a_hello_that_cannot_be_is_refused_with_its_reason() -> None:
    desk = Desk()
    assert refusal(desk.hello(config="[")).code == "config"
    assert refusal(desk.hello(run_id="not/allowed")).code == "meta"
    assert refusal(desk.hello(class_names=["only one"])).code == "class-names"
    assert desk.ledger.runs == []


def test_a_client_of_another_protocol_is_told_so() -> None:
    desk = Desk()
    hello = wire.Hello(versions=[98, 99], run=make_info())
    desk.say(wire.encode(hello, stream=STREAM))
    assert refusal(desk.answers()).code == "version"
    desk.say(future(wire.encode(hello, stream=STREAM)))
    assert refusal(desk.answers()).code == "version"


def test_a_stream_stays_with_its_run() -> None:
    desk = Desk()
    desk.hello()
    assert refusal(desk.hello(run_id="other", peer=OTHER)).code == "stream"


def test_a_store_in_trouble_postpones_the_session() -> None:
    desk = Desk()
    desk.ledger.broken = True
    assert desk.hello() == [wire.Reset()]
    desk.ledger.broken = False
    assert isinstance(desk.hello()[0], wire.Welcome)


def test_what_was_not_stored_is_asked_for_again() -> None:
    desk = Desk()
    desk.hello()
    desk.commit(desk.say(gap(0)))
    desk.answers()
    for seq in (1, 2):
        desk.say(gap(seq))
    desk.reception.ask_again()
    assert desk.answers() == [wire.Nack(next=1)]
    # What was on its way behind is no reason to ask twice.
    assert desk.say(gap(3)) == []
    assert desk.answers() == []
    desk.commit([one for seq in (1, 2, 3) for one in desk.say(gap(seq))])
    assert desk.answers() == [wire.Ack(next=4)]


def test_a_store_that_cannot_be_read_either_ends_nothing() -> None:
    desk = Desk()
    desk.hello()
    desk.say(gap(0))
    desk.ledger.broken = True
    desk.reception.ask_again()
    assert desk.answers() == [wire.Nack(next=0)]


def test_the_end_of_a_run_takes_its_turn() -> None:
    desk = Desk()
    desk.hello()
    end = wire.encode(wire.End(run_id="run", status="finished", text="", time=2.0), stream=STREAM, seq=0)
    [ready] = desk.say(end)
    assert isinstance(ready.item, RunEnd)


def test_who_ignores_the_credit_is_not_held_for_ever() -> None:
    desk = Desk(world=2)
    desk.hello()
    for seq in range(3 * CREDIT_SHARES):
        desk.say(gap(seq) if seq else window(0, world_size=2))
    assert desk.reception.counters.accepted == 2 * CREDIT_SHARES


def test_streams_are_forgotten_from_the_one_that_was_silent_for_longest() -> None:
    desk = Desk()
    first = (0).to_bytes(16, "big")
    for number in range(MAX_STREAMS + 1):
        desk.hello(stream=number.to_bytes(16, "big"), run_id=f"r{number}")
    desk.say(gap(0, stream=first, run_id="r0"))
    assert desk.answers() == [wire.Reset()]


def test_complaints_of_one_kind_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    complaints = Complaints(logging.getLogger("ncmon.test"), lambda: now[0])
    for _ in range(100):
        complaints.say("crc", "bad\x1b[31m")
    complaints.say("meta", "other")
    now[0] = 1.5
    complaints.say("crc", "bad")
    assert [record.getMessage() for record in caplog.records] == ["bad�[31m", "other", "bad (and 99 more of the kind)"]
    assert printable("a\nb\x9b") == "a�b�"
