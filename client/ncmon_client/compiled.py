"""The compiled kernel: sums by class in one pass over the features, made by the machine's own C compiler.

What torch does in a dozen of operations `compiled.c` does in one, which pays on small batches above all. It has to be
asked for (`watch(kernel="compiled")`): who trains should know of it where a compiler is started.

Rules of this module
- Training does not wait: the compiler runs niced beside it, and until it is done, or where it fails, torch adds up.
- What was compiled is tried on samples of every kind, against plain numpy, before it is used. It is compiled anew for
  each process and for its very processor, and its file is gone as soon as it is loaded: there is no cache that another
  machine, or somebody else, could have filled.
- It is for features in single precision on the host; all else stays with torch.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("compiled.c")
FLAGS = ("-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
"""Sums in any order, so that they fit into vectors; NaN and infinities stay what they are."""
TIMEOUT_S = 120.0


Target = tuple[int, int, int, int, int, int, int, int]
"""Where a layer's sums are (`target_of`), for who keeps them alive; each tensor takes a microsecond to say so."""


def target_of(shift: Tensor, sums: Tensor, units: Tensor, scalars: Tensor, counts: Tensor, nonfinite: Tensor) -> Target:
    """Return where a layer's shift, sums, unit sums (C + 1, d), scalars (5, C + 1) and both counts (C + 1,) are."""
    places = [tensor.data_ptr() for tensor in (shift, sums, units, scalars)]
    return len(counts) - 1, *places, scalars.stride(0), counts.data_ptr(), nonfinite.data_ptr()  # type: ignore[return-value]


class Kernel:
    """`compiled.c`, loaded. Raises where it does not say what it should."""

    def __init__(self, path: Path) -> None:
        self._add: Any = ctypes.CDLL(str(path)).ncmon_add
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self._add.argtypes = (
            *(pointer, whole, pointer, whole, whole, whole, pointer, pointer, pointer),
            *(pointer, whole, pointer, pointer, pointer, pointer),
        )
        self._add.restype = whole
        self._prove()

    def add(self, h: Tensor, rows: Tensor, target: Target, x: Tensor, taken: Tensor, place: int = 0) -> int:
        """Add samples h (n, d) of classes rows (n,) in [0, C]; write h less its class's shift to the `place`-th n rows
        of x (.., d), and the rows that were taken to those of `taken`. Return how many samples were left out, or are
        far from what single precision holds.
        """
        n, d = h.shape
        x_at, taken_at = x.data_ptr() + 4 * place * n * d, taken.data_ptr() + 8 * place * n
        odd: int = self._add(h.data_ptr(), h.stride(0), rows.data_ptr(), n, d, *target, x_at, taken_at)
        return odd

    def _prove(self) -> None:
        """Compare with numpy on ordinary samples, zero, NaN, infinite, huge, tiny and classless ones."""
        rng = np.random.default_rng(0)
        n, d, n_classes = 40, 37, 3
        h = rng.normal(2.0, 1.0, (n, d)).astype(np.float32)
        h[3], h[5, 7], h[9, 36], h[11], h[13] = 0, np.nan, np.inf, h[11] * np.float32(1e22), h[13] * np.float32(1e-12)
        rows = rng.integers(0, n_classes + 1, n)
        shift = rng.normal(2.0, 0.1, (n_classes + 1, d)).astype(np.float32)
        total, units = torch.zeros(2, n_classes + 1, d).unbind(0)
        counts, nonfinite = torch.zeros(2, n_classes + 1, dtype=torch.float64).unbind(0)
        scalars, x = torch.zeros(5, n_classes + 1, dtype=torch.float64), torch.empty(n, d)
        taken = torch.empty(n, dtype=torch.int64)
        target = target_of(torch.from_numpy(shift), total, units, scalars, counts, nonfinite)
        self.add(torch.from_numpy(h), torch.from_numpy(rows), target, x, taken)
        wide = h.astype(np.float64)
        norm = np.sqrt(np.square(wide).sum(1))
        held = norm**2 <= float(np.finfo(np.float32).max)
        kept = held & (rows < n_classes)
        wanted = np.where(kept, rows, n_classes)
        if not (taken.numpy() == wanted).all():
            raise ValueError("samples were put into wrong classes")
        centred = np.where(kept[:, None], h - shift[rows], 0).astype(np.float64)
        inverse = np.divide(1, norm, out=np.zeros(n), where=norm > 0)
        for c in range(n_classes):
            mine = kept & (rows == c)
            parts = ((norm == 0).astype(float), norm, norm**2, np.square(centred).sum(1), inverse)
            expected = np.array([part[mine].sum() for part in parts])
            close = (
                np.allclose(scalars[:, c].numpy(), expected, rtol=1e-4),
                np.allclose(total[c].numpy(), centred[mine].sum(0), rtol=1e-4, atol=1e-4),
                np.allclose(units[c].numpy(), (centred * inverse[:, None])[mine].sum(0), rtol=1e-3, atol=1e-4),
                float(counts[c]) == mine.sum(),
                float(nonfinite[c]) == (~held & (rows == c)).sum(),
            )
            if not all(close):
                raise ValueError("its sums are not those of numpy")


class Build:
    """A compiler at work, or what came of it. `kernel` is None until it is there."""

    def __init__(self) -> None:
        self.kernel: Kernel | None = None
        self.trouble = ""
        """Why there will be none."""
        self._thread = threading.Thread(target=self._run, name="ncmon-compile", daemon=True)
        self._thread.start()

    @property
    def word(self) -> str:
        """Say what adds up."""
        if self.kernel is not None:
            return "compiled"
        return f"torch: {self.trouble}" if self.trouble else "torch, while the compiler works"

    def wait(self, timeout_s: float) -> None:
        """Wait for the compiler; the training never does."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with torch.device("cpu"), tempfile.TemporaryDirectory(prefix="ncmon-kernel-") as place:
                path = Path(place) / "compiled.so"
                _compile(path)
                self.kernel = Kernel(path)
        except Exception as error:
            self.trouble = str(error) or type(error).__name__


def _compile(path: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "")) or [_found("cc", "gcc", "clang")]
    nice = [shutil.which("nice") or "", "-n", "19"] if shutil.which("nice") else []
    command = [*nice, *compiler, *FLAGS, "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-lm"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the C compiler took longer than {TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise ValueError(f"the C compiler {compiler[0]!r} does not start: {error.strerror}") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise ValueError(f"the C compiler failed: {said}")


def _found(*names: str) -> str:
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    raise ValueError(f"there is no C compiler: expected {', '.join(names)} or $CC")
