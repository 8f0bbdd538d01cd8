"""Files that the code reads: templates of the report, its style and script, the bibliography."""

from importlib.resources import files

__all__ = ["read_data"]


def read_data(name: str) -> str:
    """Text of a file of this package."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
