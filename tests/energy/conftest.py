"""The fake card: a C library that nvidia-ml-py loads, and the mapped table through which a test is the hardware."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
_H100 = {
    "COUNT": 1,
    "ENERGY_MJ": 2_781_447,
    "INSTANT_MW": 124_777,
    "HBM_MW": 43_700,
    "MODULE_MW": -1,
    "SM_MHZ": 1980,
    "MEM_MHZ": 2619,
    "TEMP_C": 33,
    "ARCHITECTURE": 9,
    "LIMIT_MW": 700_000,
    "LIMIT_MIN_MW": 200_000,
    "LIMIT_MAX_MW": 700_000,
    "LIMIT_DEFAULT_MW": 700_000,
    "OUT_OF_BAND_MW": 700_000,
    "MAY_SET": 1,
    "RING_MS": 20,
    "MAX_SM_MHZ": 1980,
}


class FakeCard:
    """The table: card["INSTANT_MW"] = 500_000. `env` makes child processes load the fake library."""

    def __init__(self, path: Path, built: Path) -> None:
        text = SOURCE.read_text()
        names = re.search(r"enum \{\s*(INIT_RETURN.*?)\};", text, re.DOTALL)
        assert names
        self._index = {name.strip(): i for i, name in enumerate(names[1].split(","))}
        path.write_bytes(bytes(8 * len(self._index)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._slots = memoryview(self._map).cast("q")
        self.built = built
        self.env = {**os.environ, "FAKE_NVML": str(path), "LD_LIBRARY_PATH": str(built.parent)}
        for name, value in _H100.items():
            self[name] = value

    def __getitem__(self, name: str) -> int:
        return self._slots[self._index[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._slots[self._index[name]] = value


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the fake NVML library cannot be built (apt install gcc)")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
    return library


@pytest.fixture
def card(tmp_path: Path, fake_library: Path) -> FakeCard:
    return FakeCard(tmp_path / "card.bin", fake_library)


@pytest.fixture
def nvml(card: FakeCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A private copy of nvidia-ml-py bound to a private copy of the fake library (so that each test has its card)."""
    own = tmp_path / "libfake.so"
    shutil.copy(card.built, own)
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None
    assert spec.origin is not None
    private = importlib.util.spec_from_file_location("private_pynvml", spec.origin)
    assert private is not None
    assert private.loader is not None
    module = importlib.util.module_from_spec(private)
    monkeypatch.setitem(sys.modules, "private_pynvml", module)  # nvidia-ml-py looks itself up while loading
    private.loader.exec_module(module)
    monkeypatch.setenv("FAKE_NVML", card.env["FAKE_NVML"])
    module.nvmlLib = CDLL(str(own))
    module.nvmlInit()
    yield module
    module.nvmlShutdown()
