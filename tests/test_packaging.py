"""What is shipped: the wheel's packages, its data files, the stubs and the contract behind them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from forebay.cli import protos
from forebay.errors import FailedPrecondition

ROOT = Path(__file__).resolve().parents[1]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
PACKAGES = {"forebay", "gateway", "prefill_service", "decode_service", "kv_store", "draft_service"}
BIN = Path(sys.executable).parent
by_proto = pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)


def source_copy(folder: Path) -> Path:
    """The tracked parts that a wheel is made of: building in the checkout would leave files there."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for package in PACKAGES | {"tests", "protos"}:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = folder / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Paths inside a freshly built wheel."""
    source, out = source_copy(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("forebay-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_has_exactly_the_six_packages(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_the_wheel_has_every_module_and_data_file(wheel_names):
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".lua") or path.name == "py.typed"
    }
    assert wanted <= set(wheel_names)
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_the_stubs_match_the_protos():
    protos.check()


def test_a_changed_proto_is_noticed(monkeypatch, tmp_path):
    source_copy(tmp_path)
    monkeypatch.setattr(protos, "ROOT", tmp_path)
    path = tmp_path / "protos/forebay/v1/common.proto"
    path.write_text(path.read_text().replace("float temperature = 1;", "float warmth = 1;"))
    with pytest.raises(FailedPrecondition, match="common_pb2"):
        protos.check()
    protos.regenerate()
    protos.check()
    path.unlink()


def test_the_stubs_load_on_the_oldest_protobuf_that_we_allow():
    declared = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    floor = tuple(map(int, re.search(r"protobuf>=(\d+)\.(\d+)", declared).groups()))
    grpc_floor = re.search(r"grpcio>=([\d.]+)", declared)[1]
    stubs = [path for path in protos.stubs_in(ROOT) if path.name.endswith("_pb2.py")]
    assert len(stubs) == len(PROTOS)
    for stub in stubs:
        stamped = re.search(r"# Protobuf Python Version: (\d+)\.(\d+)", (ROOT / stub).read_text())
        assert tuple(map(int, stamped.groups())) <= floor, stub
    for stub in protos.stubs_in(ROOT):
        if stub.name.endswith("_grpc.py"):
            assert f"GRPC_GENERATED_VERSION = '{grpc_floor}'" in (ROOT / stub).read_text(), stub


def test_buf_lint():
    done = subprocess.run([str(BIN / "buf"), "lint", "protos"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@by_proto
def test_every_part_of_the_contract_is_described(path):
    declaration = re.compile(
        r"\s*(service|rpc|message|enum|oneof|(optional |repeated )?[\w.<>, ]+ \w+ = \d+|[A-Z_0-9]+ = \d+)\b"
    )
    lines = path.read_text().splitlines()
    bare = [
        f"{path.name}:{number + 1}: {line.strip()}"
        for number, line in enumerate(lines)
        if declaration.match(line) and "//" not in lines[number - 1]
    ]
    assert not bare


def test_make_and_ci_call_the_same_script():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "scripts/check" in (ROOT / "Makefile").read_text()
    for script in (".ci/run", "scripts/check"):
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


def test_constraints_cover_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    assert {normal(re.match(r"[\w.-]+", name)[0]) for name in needed} <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
