"""Write docs/files.md: every source file with the first line of its own description.

python scripts/file_list.py > docs/files.md
"""

from __future__ import annotations

import ast
import subprocess
from itertools import groupby
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
FOLDERS = ("forebay", "gateway", "prefill_service", "decode_service", "kv_store", "draft_service")
HEADER = """# Every source file in one line

Made by `scripts/file_list.py` from the files' own first lines; a test keeps it true. Stubs are left out.
"""


def source_files() -> list[PurePosixPath]:
    """Tracked source files of the six packages, generated ones left out."""
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [PurePosixPath(line) for line in listed.stdout.splitlines()]
    kept = [path for path in paths if path.suffix in (".py", ".lua", ".c") and "_pb2" not in path.name]
    return sorted(kept, key=lambda path: (path.parts[:-1], path.name))


def description(path: PurePosixPath) -> str:
    """First line of the docstring, or of the leading comment of a file that is not Python."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return text.partition("\n")[0].strip("-/* ")


def document() -> str:
    """The whole file."""
    parts = [HEADER]
    for folder, paths in groupby(source_files(), key=lambda path: path.parent):
        parts.append(f"\n## {folder}\n\n")
        parts += [f"- `{path.name}`: {description(path)}\n" for path in paths]
    return "".join(parts)


if __name__ == "__main__":
    print(document(), end="")
