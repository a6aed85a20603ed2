"""The deployment's secret key of offer ids (D4)."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def load_id_key(path: Path) -> bytes:
    """Read the deployment's key of offer ids, making one at the first start (D4); whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_bytes(secrets.token_bytes(32))
        os.replace(new, path)
    return path.read_bytes()
