"""Checks of the machine: versions, GPU, shared memory, clock, model folder."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from forebay.doctor import Finding
from forebay.errors import ForebayError
from forebay.model.hub import DEMO, DEMO_PACKAGE

SHM = Path("/dev/shm")
CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
# Reading these takes microseconds: the engine reads the clock many times a step.
SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies")
MIN_SHM_BYTES = 512 << 20
MIN_DISK_BYTES = 2 << 30


def versions() -> Iterator[Finding]:
    """Python, and the packages that do not fit what is declared."""
    python = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info >= (3, 11)
    yield Finding("python", "good" if is_new else "bad", python, "" if is_new else "use Python 3.11 or newer")
    try:
        declared = requires("forebay") or []
    except PackageNotFoundError:
        yield Finding(
            "packages", "poor", "run from a folder, not installed", "pip install -c constraints.txt -e ."
        )
        return
    if misfits := [misfit for line in declared if (misfit := _misfit(line))]:
        yield Finding("packages", "bad", "; ".join(misfits), "pip install -c constraints.txt -e .")
    else:
        shown = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "torch"))
        yield Finding("packages", "good", shown)


def gpu() -> Iterator[Finding]:
    """NVIDIA GPUs, and whether the installed torch can use them."""
    command = shutil.which("nvidia-smi")
    if command is None:
        yield Finding("gpu", "good", "none: the CPU computes")
        return
    query = [command, "--query-gpu=name,memory.free", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        yield Finding("gpu", "bad", "nvidia-smi does not answer", "look at dmesg; restart the machine")
        return
    if done.returncode:
        yield Finding("gpu", "bad", done.stdout.strip() or done.stderr.strip(), "install a matching driver")
    elif "+cpu" in (torch := _version("torch")):
        fix = "pip install torch from an index with CUDA builds"
        yield Finding("gpu", "poor", f"torch {torch} cannot use {done.stdout.strip()}", fix)
    else:
        yield Finding("gpu", "good", done.stdout.strip())


def shared_memory() -> Iterator[Finding]:
    """Room for the KV store's arena, which the workers of this machine map."""
    if not SHM.is_dir():
        yield Finding("shared memory", "poor", f"no {SHM}", "use --kv-transport grpc")
        return
    free = shutil.disk_usage(SHM).free
    found = f"{free / (1 << 20):.0f} MiB free in {SHM}"
    if free < MIN_SHM_BYTES:
        fix = "docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm, or --kv-arena-bytes smaller"
        yield Finding("shared memory", "poor", found, fix)
    else:
        yield Finding("shared memory", "good", found)


def clocks() -> Iterator[Finding]:
    """A clock that is quick to read."""
    if not CLOCK.is_file():
        yield Finding("clock", "good", f"resolution {time.get_clock_info('perf_counter').resolution:.0e} s")
        return
    source = CLOCK.read_text().strip()
    if source in SLOW_CLOCKS:
        fix = f"boot with clocksource=tsc, or echo tsc > {CLOCK}"
        yield Finding("clock", "poor", f"{source} is slow to read", fix)
    else:
        yield Finding("clock", "good", source)


def disk() -> Iterator[Finding]:
    """Room for converted and downloaded models."""
    free = shutil.disk_usage(Path.home()).free
    found = f"{free / (1 << 20):.0f} MiB free at {Path.home()}"
    if free < MIN_DISK_BYTES:
        yield Finding("disk", "poor", found, "free some, or point HF_HOME at another disk")
    else:
        yield Finding("disk", "good", found)


def model_folder(name: str) -> Iterator[Finding]:
    """Configuration, tokenizer and weights; of the demo, its package."""
    folder = Path(name).expanduser()
    missing = [part for part in ("config.json", "tokenizer.json") if not (folder / part).is_file()]
    if name == DEMO:
        yield _demo()
    elif not folder.is_dir():
        yield Finding(
            "model", "bad", f"no folder {name}", "name a folder, or `forebay model import FILE.gguf`"
        )
    elif missing or not any(folder.glob("*.safetensors")):
        parts = ", ".join(missing or ["*.safetensors"])
        yield Finding("model", "bad", f"{name} lacks {parts}", "download the whole model repository")
    else:
        yield _model_config(folder)


def _demo() -> Finding:
    if importlib.util.find_spec(DEMO_PACKAGE) is None:
        return Finding(
            "model", "poor", "the demo's weights are not installed", "`forebay demo` installs them"
        )
    return Finding("model", "good", "the demo's weights are installed")


def _model_config(folder: Path) -> Finding:
    from forebay.model.config import ModelConfig

    try:
        config = ModelConfig.from_folder(folder)
    except ForebayError as error:
        return Finding("model", "bad", error.message, "use a Llama or Qwen model")
    return Finding("model", "good", f"{config.architecture}, context {config.max_positions}")


def _misfit(line: str) -> str:
    """What is wrong with a declared dependency, "" for nothing; optional ones may be absent."""
    declared, _, marker = line.partition(";")
    match = re.match(r"([\w.-]+)(?:>=([\d.]+))?", declared.strip())
    if match is None or "extra" in marker or "platform_system" in marker:
        return ""
    name, least = match[1], match[2]
    if not (found := _version(name)):
        return f"{name} is missing"
    return f"{name} {found} is older than {least}" if least and _parts(found) < _parts(least) else ""


def _version(name: str) -> str:
    """The installed version, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".") if part.isdigit())
