"""The statements of the journal, as they stand in ``sql/``: its tables and its queries."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

SQL = Path(__file__).parent / "sql"


def migrations(directory: Path = SQL) -> list[str]:
    """The scripts that make a journal, in order; version N is made by the first N of them."""
    return [path.read_text(encoding="utf-8") for path in sorted(directory.glob("[0-9]*.sql"))]


@lru_cache(1)
def queries() -> dict[str, str]:
    """The statements of ``queries.sql`` by name."""
    parts = re.split(r"^-- name: (\w+)\n", (SQL / "queries.sql").read_text("utf-8"), flags=re.M)
    statements = (re.sub(r"^--.*\n", "", text, flags=re.M).strip() for text in parts[2::2])
    return dict(zip(parts[1::2], statements, strict=True))
