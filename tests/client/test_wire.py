"""Encoding and decoding are inverse, and hostile bytes raise `WireError` and nothing else."""

from __future__ import annotations

import struct
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ncmon_client import wire
from ncmon_client.errors import WireError
from tests.factories import make_window
from tests.messages import STREAM, make_gap, make_info, to_wire, window_frames

MESSAGES: list[wire.Meta] = [
    wire.Hello(versions=[1], run=make_info()),
    wire.Welcome(version=1, next=3, credit_messages=64, credit_bytes=1 << 25, max_frame_bytes=1 << 24),
    wire.Refuse(code="version", text="update"),
    make_gap(),
    wire.End(run_id="run", status="finished", text="", time=1.0),
    wire.Ack(next=5),
    wire.Nack(next=0),
    wire.Reset(),
]
WINDOW = window_frames(make_window(layers=2))
few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("meta", MESSAGES, ids=lambda meta: type(meta).__name__)
def test_every_message_comes_back_as_it_went(meta: wire.Meta) -> None:
    message = wire.decode(wire.encode(meta, stream=STREAM, seq=7))
    assert (message.meta, message.stream, message.seq, message.blob) == (meta, STREAM, 7, b"")
    assert message.kind is wire.kind_of(meta)


def test_the_header_has_the_documented_layout() -> None:
    """Read by hand: this layout is the protocol, whatever the code's own struct says."""
    header, body = wire.encode(wire.Ack(next=5), stream=STREAM, seq=9)
    assert len(header) == 36
    assert header[:4] == b"NCMW"
    assert struct.unpack_from("<HBB", header, 4) == (1, 7, 0)
    assert header[8:24] == STREAM
    assert struct.unpack_from("<QI", header, 24) == (9, zlib.crc32(body))
    assert msgspec.msgpack.decode(body) == {"next": 5}


@given(st.integers(2, 5), st.integers(1, 9), st.sampled_from(["f4", "f8"]), st.integers(0, 2**32 - 1))
@few
def test_arrays_come_back_bit_by_bit(n_classes: int, width: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.bytes(n_classes * width * int(dtype[1]))
    means = np.frombuffer(bits, dtype=f"<{dtype}").reshape(n_classes, width)
    counts = rng.integers(0, 2**40, n_classes)
    specs, blob = wire.pack_arrays([("class_counts", 0, counts), ("class_means", 0, means), ("bias", -1, means[:, 0])])
    window, _ = to_wire(make_window(n_classes=n_classes, n_features=width, layers=1), arrays=specs)
    found = wire.unpack_arrays(window, blob)
    assert found[0, "class_means"].tobytes() == bits
    assert np.array_equal(found[0, "class_counts"], counts)
    assert found[-1, "bias"].tobytes() == np.ascontiguousarray(means[:, 0]).tobytes()


def test_a_large_buffer_is_cut_and_joined_again() -> None:
    blob = np.arange(5 * 2**20, dtype="<i8").tobytes()
    frames = wire.cut(blob)
    assert [len(frame) for frame in frames] == [2**23] * 5
    meta, _ = to_wire(make_window(layers=1))
    assert wire.decode(wire.encode(meta, stream=STREAM, blob=blob)).blob == blob


def test_a_message_that_the_other_side_would_refuse_is_not_encoded() -> None:
    with pytest.raises(WireError) as caught:
        wire.cut(bytes(wire.MAX_BLOBS * wire.BLOB_CUT_BYTES + 1))
    assert caught.value.code == "payload-too-large"
    with pytest.raises(WireError) as caught:
        wire.encode(wire.Refuse(code="x", text="y" * wire.MAX_META_BYTES), stream=STREAM)
    assert caught.value.code == "meta-too-large"
    with pytest.raises(WireError) as caught:
        wire.pack_arrays([("class_means", 0, np.zeros((2, 2), dtype=np.float16))])  # type: ignore[list-item]
    assert caught.value.code == "dtype"


def framed(kind: int, body: bytes, *blobs: bytes, version: int = 1, magic: bytes = b"NCMW") -> list[bytes]:
    crc = zlib.crc32(b"".join((body, *blobs)))
    return [wire.HEADER.pack(magic, version, kind, 0, STREAM, 0, crc), body, *blobs]


ack = msgspec.msgpack.encode({"next": 5})


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "frames"),
        ([b"x"], "frames"),
        ([b"x"] * (wire.MAX_FRAMES + 1), "frames"),
        ([b"short", ack], "header"),
        (framed(8, ack, magic=b"HTTP"), "magic"),
        (framed(8, ack, version=2), "version"),
        (framed(8, ack, version=0), "version"),
        (framed(99, ack), "kind"),
        (framed(8, ack, b"blob"), "frames"),
        (framed(8, b"\x00" * (wire.MAX_META_BYTES + 1)), "meta-too-large"),
        ([framed(8, ack)[0], ack[:-1] + b"\x06"], "crc"),
        ([*framed(4, ack, b"a")[:2], b"b"], "crc"),
        (framed(8, b""), "meta"),
        (framed(8, b"\xc1"), "meta"),
        (framed(8, msgspec.msgpack.encode({"next": -1})), "meta"),
        (framed(8, msgspec.msgpack.encode({"next": 2**63})), "meta"),
        (framed(8, msgspec.msgpack.encode({"next": 1, "more": 1})), "meta"),
        (framed(8, msgspec.msgpack.encode({"next": 1.5})), "meta"),
        (framed(3, b"\x82\xa4code\xa1x\xa4text\xa1\xff"), "meta"),
        (framed(3, b"\x82\xa4code\xa1x\xa4text\xa3\xed\xa0\x80"), "meta"),
        (framed(8, b"\x91" * 100_000), "meta"),
        (framed(8, b"\xdd\xff\xff\xff\xff"), "meta"),
    ],
)
def test_bytes_that_are_no_message_are_named(frames: list[bytes], code: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode(frames)
    assert caught.value.code == code
    assert str(caught.value)


@given(st.lists(st.binary(max_size=80), max_size=20))
@example([b"NCMW" + bytes(32), b""])
@few
def test_random_frames_never_raise_anything_else(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.decode(frames)


@given(st.sampled_from(list(wire.Kind)), st.binary(max_size=200))
@few
def test_random_meta_behind_a_right_header_never_raises_anything_else(kind: wire.Kind, body: bytes) -> None:
    try:
        message = wire.decode(framed(kind, body))
    except WireError:
        return
    assert message.kind is kind


def damaged(frames: list[bytes], data: st.DataObject) -> list[bytes]:
    place = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[place])
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(frame) - 1))
        frame[bit // 8] ^= 1 << (bit % 8)
    else:
        del frame[data.draw(st.integers(0, len(frame) - 1)) :]
    return [*frames[:place], bytes(frame), *frames[place + 1 :]]


@given(st.data())
@few
def test_a_damaged_window_is_refused_or_differs_in_the_header_alone(data: st.DataObject) -> None:
    """Stream, seq and flags are outside of the checksum; nothing else may change unnoticed."""
    frames = damaged(WINDOW, data)
    try:
        message = wire.decode(frames)
    except WireError:
        return
    assert frames[1:] == WINDOW[1:]
    assert message.meta == wire.decode(WINDOW).meta or message.kind is not wire.Kind.WINDOW


@given(st.data())
@few
def test_damage_behind_a_repaired_checksum_still_raises_nothing_else(data: st.DataObject) -> None:
    """A hostile peer computes its own checksum."""
    body, *blobs = damaged(WINDOW[1:], data)
    try:
        message = wire.decode(framed(wire.Kind.WINDOW, body, *blobs))
        assert isinstance(message.meta, wire.WindowMeta)
        wire.unpack_arrays(message.meta, message.blob)
    except WireError:
        pass


def spec(name: str, layer: int, dtype: str, *shape: int) -> wire.ArraySpec:
    return wire.ArraySpec(name=name, layer=layer, dtype=dtype, shape=list(shape))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("specs", "blob", "code"),
    [
        ([spec("surprise", 0, "f8", 4)], bytes(32), "array"),
        ([spec("weight", 0, "f8", 4, 8)], bytes(256), "array"),
        ([spec("class_counts", 0, "i8", 4)] * 2, bytes(64), "array"),
        ([spec("class_counts", 1, "i8", 4)], bytes(32), "array"),
        ([spec("class_counts", 0, "f8", 4)], bytes(32), "dtype"),
        ([spec("class_counts", 0, "i8", 5)], bytes(40), "shape"),
        ([spec("class_counts", 0, "i8", 4, 1)], bytes(32), "shape"),
        ([spec("class_means", 0, "f8", 4)], bytes(32), "shape"),
        ([spec("class_means", 0, "f8", 8, 4)], bytes(256), "shape"),
        ([spec("within_scatter", 0, "f8", 8, 9)], bytes(576), "shape"),
        ([spec("weight", -1, "f8", 4, 8), spec("bn_gamma", -1, "f8", 9)], bytes(328), "shape"),
        ([spec("class_counts", 0, "i8", 4)], bytes(31), "length"),
        ([spec("class_counts", 0, "i8", 4)], bytes(33), "length"),
        ([spec("span_singular", 0, "f8", wire.MAX_DIM)], bytes(8), "length"),
        ([], bytes(1), "length"),
    ],
)
def test_arrays_that_contradict_the_window_are_named(specs: list[wire.ArraySpec], blob: bytes, code: str) -> None:
    meta, _ = to_wire(make_window(n_classes=4, n_features=8, layers=1), arrays=specs)
    with pytest.raises(WireError) as caught:
        wire.unpack_arrays(meta, blob)
    assert caught.value.code == code


def test_a_size_is_compared_in_unbounded_integers() -> None:
    """2^24 x 2^24 x 8 bytes is 2^51; a product in 32 or 64 bits of a larger one would wrap to something small."""
    meta, _ = to_wire(make_window(layers=1), arrays=[spec("within_scatter", 0, "f8", wire.MAX_DIM, wire.MAX_DIM)])
    layer = msgspec.structs.replace(meta.layers[0], n_features=wire.MAX_DIM)
    with pytest.raises(WireError) as caught:
        wire.unpack_arrays(msgspec.structs.replace(meta, layers=[layer]), bytes(64))
    assert caught.value.code == "length"
    assert str(8 * wire.MAX_DIM**2) in str(caught.value)


def test_a_new_stream_is_random() -> None:
    assert len({wire.new_stream() for _ in range(100)}) == 100
    assert len(wire.new_stream()) == wire.STREAM_BYTES


def test_the_default_endpoint_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCMON_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert wire.default_endpoint() == "ipc:///run/user/7/ncmon/ncmon.sock"
    monkeypatch.setenv("NCMON_ENDPOINT", "ipc:///elsewhere")
    assert wire.default_endpoint() == "ipc:///elsewhere"
