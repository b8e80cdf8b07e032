"""What is said to the daemon next: a script of events in, commands out. No socket, no thread, no clock."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import msgspec
import pytest

from ncmon_client import session, wire
from ncmon_client.outbox import Outbox
from ncmon_client.session import Dial, HangUp, Phase, Ready, Send, Session, Wait
from tests.messages import Prepared, Unsealable, make_gap, make_info


class Talk:
    """A session with an outbox, and a clock that the test moves."""

    def __init__(self, *, run: wire.RunInfo | None = None, max_messages: int = 512) -> None:
        self.outbox = Outbox(max_messages=max_messages)
        self.now = 100.0
        self.session = Session(
            endpoint="ipc:///x/s",
            run=run or make_info(),
            outbox=self.outbox,
            rng=random.Random(0),
            now=self.now,
        )

    def offer(self, count: int, *, first_step: int = 0) -> None:
        for step in range(first_step, first_step + count):
            assert self.outbox.offer(Prepared(make_gap(step=step)), 100)

    def next(self) -> session.Command:
        return self.session.next(self.now)

    def sends(self) -> list[wire.Message]:
        """Everything that is handed to the socket before the session waits."""
        sent = []
        while isinstance(command := self.next(), Send):
            sent.append(wire.decode(command.frames))
            self.session.sent(self.now)
        assert isinstance(command, Wait)
        return sent

    def hear(self, meta: wire.Meta, *, stream: bytes | None = None) -> None:
        self.session.received(self.now, wire.encode(meta, stream=stream or self.session.stream))

    def greet(self) -> wire.Message:
        """Up to the HELLO."""
        while not isinstance(command := self.next(), Dial):
            assert isinstance(command, HangUp | Wait)
            if isinstance(command, Wait):
                self.now += command.seconds
        self.session.connected(self.now)
        [hello] = self.sends()
        return hello

    def open(self, next_seq: int = 0, *, messages: int = 64, nbytes: int = 1 << 20) -> None:
        self.greet()
        self.hear(welcome(next_seq, messages=messages, nbytes=nbytes))
        assert self.session.phase is Phase.OPEN

    def warnings(self) -> list[str]:
        return [text for level, text in self.session.notices if level == logging.WARNING]


def welcome(next_seq: int, *, messages: int = 64, nbytes: int = 1 << 20, version: int = 1) -> wire.Welcome:
    return wire.Welcome(
        version=version, next=next_seq, credit_messages=messages, credit_bytes=nbytes, max_frame_bytes=1 << 24
    )


def steps(messages: Sequence[wire.Message]) -> list[tuple[int, int]]:
    return [(message.seq, message.meta.step) for message in messages if isinstance(message.meta, wire.Gap)]


def test_a_session_begins_with_hello_and_sends_nothing_before_welcome() -> None:
    talk = Talk()
    talk.offer(2)
    hello = talk.greet()
    assert isinstance(hello.meta, wire.Hello)
    assert hello.meta.run == make_info()
    assert hello.meta.versions == [1]
    assert talk.sends() == []
    talk.hear(welcome(0))
    assert steps(talk.sends()) == [(0, 0), (1, 1)]


def test_credit_in_messages_bounds_what_is_in_flight() -> None:
    talk = Talk()
    talk.offer(5)
    talk.open(messages=2)
    assert [message.seq for message in talk.sends()] == [0, 1]
    talk.hear(wire.Ack(next=1))
    assert [message.seq for message in talk.sends()] == [2]


def test_credit_in_bytes_bounds_what_is_in_flight_but_lets_one_message_go() -> None:
    talk = Talk()
    talk.offer(3)
    talk.open(nbytes=1)
    assert [message.seq for message in talk.sends()] == [0]
    talk.hear(wire.Ack(next=1))
    assert [message.seq for message in talk.sends()] == [1]


def test_what_is_acknowledged_is_forgotten_and_only_that() -> None:
    talk = Talk()
    talk.offer(3)
    talk.open()
    talk.sends()
    talk.hear(wire.Ack(next=2))
    assert talk.outbox.counts().acknowledged == 2
    talk.hear(wire.Ack(next=1))
    assert talk.outbox.counts().acknowledged == 2


def test_a_nack_rewinds_without_acknowledging() -> None:
    talk = Talk()
    talk.offer(4)
    talk.open()
    talk.sends()
    talk.hear(wire.Nack(next=2))
    assert steps(talk.sends()) == [(2, 2), (3, 3)]
    assert talk.outbox.counts().acknowledged == 0


@pytest.mark.parametrize("asked", [0, 99])
def test_a_nack_for_what_is_not_held_asks_the_store_by_a_new_session(asked: int) -> None:
    talk = Talk()
    talk.offer(3)
    talk.open()
    talk.sends()
    talk.hear(wire.Ack(next=2))
    talk.hear(wire.Nack(next=asked))
    assert isinstance(talk.next(), HangUp)


def test_after_a_disconnect_the_store_says_where_to_go_on() -> None:
    talk = Talk()
    talk.offer(4)
    talk.open()
    talk.sends()
    talk.session.lost(talk.now, "gone")
    # 0 to 2 were committed, their acknowledgement was lost with the connection.
    talk.open(3)
    assert steps(talk.sends()) == [(3, 3)]
    assert talk.outbox.counts().acknowledged == 3


def test_each_session_has_a_new_socket_and_the_same_stream() -> None:
    talk = Talk()
    first = talk.greet()
    talk.hear(wire.Reset())
    assert isinstance(talk.next(), HangUp)
    assert talk.greet().stream == first.stream


def test_silence_about_what_is_in_flight_ends_the_session() -> None:
    talk = Talk()
    talk.offer(1)
    talk.open()
    talk.sends()
    talk.now += session.ACK_TIMEOUT_S - 0.01
    assert isinstance(talk.next(), Wait)
    talk.now += 0.02
    assert isinstance(talk.next(), HangUp)
    assert "no acknowledgement" in talk.session.last_error


def test_an_acknowledgement_that_says_nothing_new_is_a_sign_of_life() -> None:
    """A daemon that waits for other ranks holds what is in flight for longer than the timeout."""
    talk = Talk()
    talk.offer(1)
    talk.open()
    talk.sends()
    for _ in range(10):
        talk.now += 0.9 * session.ACK_TIMEOUT_S
        talk.hear(wire.Ack(next=0))
        assert isinstance(talk.next(), Wait)
    assert talk.session.phase is Phase.OPEN


def test_an_idle_session_stays_open() -> None:
    talk = Talk()
    talk.open()
    talk.now += 3600
    assert isinstance(talk.next(), Wait)
    assert talk.session.phase is Phase.OPEN


def test_a_daemon_that_does_not_answer_hello_is_left() -> None:
    talk = Talk()
    talk.greet()
    talk.now += session.GREETING_TIMEOUT_S
    assert isinstance(talk.next(), HangUp)


def test_the_back_off_grows_from_50_ms_to_2_s_with_jitter() -> None:
    talk = Talk()
    waits = []
    for _ in range(12):
        started = talk.now
        while not isinstance(command := talk.next(), Dial):
            if isinstance(command, Wait):
                talk.now += command.seconds
        waits.append(talk.now - started)
        talk.session.lost(talk.now, "nobody listens there")
    assert waits.pop(0) == 0
    assert waits[0] <= session.BACKOFF_MIN_S
    assert session.BACKOFF_MAX_S / 2 <= waits[-1] <= session.BACKOFF_MAX_S
    assert len(set(waits[-5:])) == 5
    # A session that delivered something starts it anew.
    talk.offer(1)
    talk.open()
    talk.sends()
    talk.hear(wire.Ack(next=1))
    talk.session.lost(talk.now, "gone")
    assert isinstance(talk.next(), HangUp)
    command = talk.next()
    assert isinstance(command, Wait)
    assert command.seconds <= session.BACKOFF_MIN_S


def test_a_store_that_lost_acknowledged_messages_gets_a_new_stream_behind_a_gap() -> None:
    talk = Talk()
    talk.offer(5)
    talk.open()
    old = talk.session.stream
    talk.sends()
    talk.hear(wire.Ack(next=3))
    talk.session.lost(talk.now, "gone")
    talk.greet()
    talk.hear(welcome(1))
    assert talk.session.stream != old
    talk.open(0)
    messages = talk.sends()
    gap = messages[0].meta
    assert isinstance(gap, wire.Gap)
    # Of 0, 1 and 2 the store still has 0: the last acknowledged one tells where in the run that was.
    assert (messages[0].seq, gap.step, gap.run_id) == (0, 2, "run")
    assert "2 messages" in gap.reason
    assert steps(messages[1:]) == [(1, 3), (2, 4)]
    talk.hear(wire.Ack(next=3))
    counts = talk.outbox.counts()
    assert (counts.accepted, counts.acknowledged, counts.held) == (5, 5, 0)


def test_a_daemon_that_expects_what_was_never_sent_gets_a_new_stream_without_a_gap() -> None:
    talk = Talk()
    talk.offer(2)
    old = talk.session.stream
    talk.greet()
    talk.hear(welcome(7))
    assert talk.session.stream != old
    talk.open(0)
    assert steps(talk.sends()) == [(0, 0), (1, 1)]


def test_a_store_that_lost_everything_twice_is_no_stall() -> None:
    talk = Talk()
    talk.offer(2)
    talk.open()
    for following in (1, 1):
        talk.sends()
        talk.hear(wire.Ack(next=following))
        talk.session.lost(talk.now, "gone")
        talk.greet()
        talk.hear(welcome(0))
        talk.open(0)
    assert [message.kind for message in talk.sends()] == [wire.Kind.GAP] * 2
    talk.hear(wire.Ack(next=2))
    assert talk.outbox.counts().held == 0


def test_a_refusal_is_said_once_and_not_asked_again_soon() -> None:
    talk = Talk()
    talk.greet()
    talk.hear(wire.Refuse(code="version", text="update the client"))
    assert isinstance(talk.next(), HangUp)
    command = talk.next()
    assert isinstance(command, Wait)
    talk.now += session.REFUSED_WAIT_S - 1
    assert isinstance(talk.next(), Wait)
    assert talk.session.refused
    [text] = talk.warnings()
    assert "update the client" in text
    talk.now += 2
    assert isinstance(talk.next(), Dial)


def test_an_absent_daemon_is_one_warning_and_its_return_one_line() -> None:
    talk = Talk()
    talk.offer(1)
    started = talk.now
    while talk.now < started + 60:
        command = talk.next()
        if isinstance(command, Dial):
            talk.session.lost(talk.now, "nobody listens there")
        elif isinstance(command, Wait):
            talk.now += max(command.seconds, 0.001)
            if talk.now < started + session.WARN_AFTER_S:
                assert talk.warnings() == []
    [text] = talk.warnings()
    assert "ipc:///x/s" in text
    assert "nobody listens there" in text
    talk.open()
    assert [level for level, _ in talk.session.notices] == [logging.WARNING, logging.INFO]


def test_a_short_outage_is_no_line_at_all() -> None:
    talk = Talk()
    talk.open()
    talk.session.lost(talk.now, "gone")
    talk.now += 0.5
    talk.open()
    assert not talk.session.notices


def test_what_could_not_be_delivered_is_said_once_at_the_end() -> None:
    talk = Talk()
    talk.offer(3)
    talk.session.gave_up()
    talk.session.gave_up()
    [text] = talk.warnings()
    assert "3 messages" in text


def test_a_window_that_cannot_be_packed_becomes_a_gap_in_its_place() -> None:
    talk = Talk()
    talk.offer(1)
    talk.outbox.offer(Unsealable(), 10)
    talk.outbox.offer(Unsealable(wholly=True), 10)
    talk.offer(1, first_step=3)
    talk.open()
    sent = talk.sends()
    assert [message.kind for message in sent] == [wire.Kind.GAP] * 4
    assert [message.seq for message in sent] == [0, 1, 2, 3]
    reasons = [message.meta.reason for message in sent if isinstance(message.meta, wire.Gap)]
    assert "did not converge" in reasons[1]
    assert "did not converge" in reasons[2]


def test_waiting_time_is_used_to_pack() -> None:
    """What training handed over may be a hundred times its bytes on the wire."""
    talk = Talk()
    talk.offer(2)
    assert isinstance(talk.next(), Dial)
    assert talk.next() == Wait(0.0)
    assert talk.next() == Wait(0.0)
    assert talk.outbox.unpacked() is None
    command = talk.next()
    assert isinstance(command, Wait)
    assert command.seconds > 0


def test_a_socket_that_takes_nothing_is_waited_for() -> None:
    talk = Talk()
    talk.offer(1)
    talk.open()
    first = talk.next()
    talk.session.blocked()
    command = talk.next()
    assert isinstance(command, Wait)
    assert command.writable
    talk.session.writable()
    assert talk.next() == first


@pytest.mark.parametrize("frames", [[], [b"\0"], [b"x" * 36, b"y"]])
def test_a_stranger_on_the_socket_ends_the_session(frames: list[bytes]) -> None:
    talk = Talk()
    talk.open()
    talk.session.received(talk.now, frames)
    assert isinstance(talk.next(), HangUp)


def test_messages_of_another_stream_and_late_ones_change_nothing() -> None:
    talk = Talk()
    talk.offer(2)
    talk.open()
    talk.sends()
    talk.hear(wire.Ack(next=2), stream=bytes(16))
    assert talk.outbox.counts().acknowledged == 0
    talk.session.lost(talk.now, "gone")
    talk.hear(wire.Ack(next=2))
    assert talk.outbox.counts().acknowledged == 0


def test_an_answer_in_an_unknown_protocol_ends_the_session() -> None:
    talk = Talk()
    talk.greet()
    talk.hear(welcome(0, version=9))
    assert "protocol 9" in talk.session.last_error


def test_a_run_whose_names_do_not_fit_is_introduced_without_them() -> None:
    names = ["n" * 250] * 2000
    talk = Talk(run=make_info(n_classes=2000, class_names=names, name="\ud800"))
    hello = talk.greet().meta
    assert isinstance(hello, wire.Hello)
    assert hello.run == msgspec.structs.replace(
        make_info(n_classes=2000), name="run", config="{}", class_names=[], tags=[]
    )


def test_the_end_of_a_run_is_a_sequenced_message_like_any_other() -> None:
    talk = Talk()
    talk.offer(1)
    end = wire.End(run_id="run", status="finished", text="", time=1.0)
    assert talk.outbox.offer(Ready(end), 64)
    talk.open()
    assert [(message.kind, message.seq) for message in talk.sends()] == [(wire.Kind.GAP, 0), (wire.Kind.END, 1)]
    assert Ready(end).gap("why").reason == "why"
