"""Hostile peers on the daemon's socket, while an honest client goes on: noise, huge messages, slow greetings.

    python scripts/faults/hostile.py                 60 s of it

Fuzzed frames are made from valid messages by changing bytes, lengths and the number of frames. The daemon must live,
its memory stay bounded, and the honest client's windows be acknowledged within two seconds all the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq
from stand import Stand, peak_bytes, report, resident_bytes, stand

from ncmon_client import wire
from ncmon_client.outbox import Outbox
from ncmon_client.sender import Sender
from tests.factories import make_window
from tests.messages import Prepared, make_info, to_wire, window_frames


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What an attacker knows."""

    endpoint: str


def dealer(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[Any]:
    made = context.socket(zmq.DEALER)
    made.linger, made.sndtimeo, made.rcvtimeo = 0, 200, 200
    made.connect(endpoint)
    return made


def greeted(context: zmq.Context[Any], site: Site, rng: random.Random) -> tuple[zmq.Socket[Any], bytes]:
    made, stream = dealer(context, site.endpoint), rng.randbytes(16)
    with suppress(zmq.Again):
        made.send_multipart(wire.encode(wire.Hello(versions=[1], run=make_info(run_id="evil")), stream=stream))
        made.recv_multipart()
    return made, stream


def mutated(frames: list[bytes], rng: random.Random) -> list[bytes]:
    """Return a message that is nearly one."""
    frames = [bytearray(frame) for frame in frames]  # type: ignore[misc]
    for _ in range(rng.randint(1, 4)):
        frame = rng.choice(frames)
        match rng.randrange(6):
            case 0 if frame:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)  # type: ignore[index]
            case 1:
                del frame[rng.randrange(len(frame) + 1) :]  # type: ignore[attr-defined]
            case 2:
                frame += rng.randbytes(rng.randrange(200))  # type: ignore[misc]
            case 3:
                frames.append(bytearray(rng.randbytes(rng.randrange(50))))  # type: ignore[arg-type]
            case 4 if len(frames) > 1:
                frames.remove(frame)
            case 5 if len(frame) > 8:
                at = rng.randrange(len(frame) - 8)
                frame[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7))  # type: ignore[index]
    return list(map(bytes, frames))


def fuzz(site: Site, rng: random.Random, stop: threading.Event) -> int:
    context: zmq.Context[Any] = zmq.Context()
    sent = 0
    peer, stream, seq = None, b"", 0
    while not stop.is_set():
        if peer is None or sent % 200 == 0:
            if peer is not None:
                peer.close(0)
            (peer, stream), seq = greeted(context, site, rng), 0
        window = dataclasses.replace(make_window(layers=1, n_features=4, per_class=3, step=seq), run_id="evil")
        frames = mutated(window_frames(window, seq=seq, stream=stream), rng)
        if rng.random() < 0.7 and len(frames) > 1:
            # With a header that is right: what lies behind it is looked at.
            frames[0] = wire.seal(wire.Kind.WINDOW, frames[1], frames[2:], stream=stream, seq=seq)[0]
            seq += 1
        with suppress(zmq.ZMQError):
            peer.send_multipart(frames or [b""])
            sent += 1
    context.destroy(linger=0)
    return sent


def noise(site: Site, rng: random.Random, stop: threading.Event) -> int:
    """Random bytes, greetings that never end, frames of a claimed gigabyte."""
    sent = 0
    slow: list[socket.socket] = []
    while not stop.is_set():
        with suppress(OSError):
            raw = socket.socket(socket.AF_UNIX)
            raw.settimeout(0.2)
            raw.connect(site.endpoint.removeprefix("ipc://"))
            match rng.randrange(3):
                case 0:
                    raw.sendall(rng.randbytes(rng.randrange(1, 4000)))
                    raw.close()
                case 1:
                    raw.sendall(b"\xff")
                    slow.append(raw)
                case 2:
                    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
                    raw.sendall(b"\x02" + (1 << 30).to_bytes(8, "big") + bytes(1000))
                    slow.append(raw)
            sent += 1
        while len(slow) > 100:
            slow.pop(0).close()
        time.sleep(0.005)
    for raw in slow:
        raw.close()
    return sent


def crowd(site: Site, rng: random.Random, stop: threading.Event) -> int:
    """Many frames in one message, large messages that nobody asked for, and never a look at an answer."""
    context: zmq.Context[Any] = zmq.Context()
    peers = [greeted(context, site, rng)[0] for _ in range(8)]
    sent = 0
    while not stop.is_set():
        with suppress(zmq.ZMQError):
            peer = rng.choice(peers)
            peer.send_multipart([b"x"] * 10_000 if rng.random() < 0.5 else [rng.randbytes(100), bytes(2 << 20)])
            sent += 1
        time.sleep(0.01)
    context.destroy(linger=0)
    return sent


def speaking(site: Site) -> socket.socket:
    """Return a raw connection behind its handshake, as a DEALER."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(2.0)
    raw.connect(site.endpoint.removeprefix("ipc://"))
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
    greeting = b""
    while len(greeting) < 64:
        greeting += raw.recv(64 - len(greeting))
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    raw.recv(256)
    return raw


def endless(site: Site, rng: random.Random, stop: threading.Event) -> int:
    """Messages whose last part never comes, as fast as they are taken, and a gigabyte that is only announced."""
    part = b"\x03" + (65536).to_bytes(8, "big") + bytes(65536)
    sent = 0
    while not stop.is_set():
        with suppress(OSError), speaking(site) as raw:
            if rng.random() < 0.3:
                raw.sendall(b"\x02" + (1 << 30).to_bytes(8, "big") + bytes(65536))
            while not stop.is_set():
                raw.sendall(part)
                sent += 1
        time.sleep(0.05)
    return sent


ATTACKS = (fuzz, noise, crowd, endless)


def attack(site: Site, seed: int) -> None:
    """Attack from a thread each until standard input ends, then print how much was sent."""
    stop = threading.Event()
    counts: dict[str, int] = {}

    def start(number: int, what: Callable[..., int]) -> threading.Thread:
        def act() -> None:
            counts[what.__name__] = what(site, random.Random(seed + number), stop)

        thread = threading.Thread(target=act)
        thread.start()
        return thread

    threads = [start(number, what) for number, what in enumerate(ATTACKS)]
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(counts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--attack", metavar="ENDPOINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        return attack(Site(endpoint=args.attack), args.seed)
    with stand() as site:
        daemon = site.daemon()
        site.watch_inserts()
        before = resident_bytes(daemon.pid)
        # In a process of their own: what the honest client waits for is the daemon, and not Python's lock.
        attackers = subprocess.Popen(
            [sys.executable, __file__, "--attack", site.endpoint, "--seed", str(args.seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=site.environment,
            text=True,
        )
        try:
            found = honest(site, daemon, args.seconds)
            counts = json.loads(attackers.communicate(timeout=60.0)[0])
        finally:
            attackers.kill()
            attackers.wait()
        report(
            fault="hostile peers",
            sent=counts,
            idle_mb=before >> 20,
            sessions_cut=site.read("daemon.log").count("asked for a new session"),
            **found,
            evil_rejected=site.rows("SELECT code, count(*) FROM rejected GROUP BY code ORDER BY 2 DESC"),
        )


def honest(site: Stand, daemon: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Send one window after another, each when the one before is acknowledged; return how that went."""
    outbox = Outbox()
    sender = Sender(endpoint=site.endpoint, run=make_info(), outbox=outbox, log=logging.getLogger("honest"))
    slowest, most, step = 0.0, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meta, blob = to_wire(make_window(layers=1, n_features=6, per_class=4, step=step))
        begin = time.monotonic()
        outbox.offer(Prepared(meta, blob), len(blob))
        sender.start()
        sender.wake()
        step += 1
        while outbox.counts().held and time.monotonic() < begin + 30:
            time.sleep(0.002)
        slowest = max(slowest, time.monotonic() - begin)
        if daemon.poll() is None:
            most = peak_bytes(daemon.pid)
        time.sleep(0.02)
    alive = daemon.poll() is None
    sender.close(5.0)
    if not alive:
        print(site.read("daemon.log")[-3000:], daemon.returncode)
    verdict = site.verdict({"run": set(range(step))})
    return {
        "alive": alive,
        "served_within_s": round(slowest, 3),
        "peak_mb": most >> 20,
        "honest_windows": step,
        **{name: value for name, value in verdict.items() if name != "accepted"},
    }


if __name__ == "__main__":
    main()
