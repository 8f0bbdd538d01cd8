"""The bibliography that is shipped: ``references.bib``, read, chosen from and put into words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from bids_fbn.data import read_data

__all__ = ["Reference", "cited_keys", "references"]

_ENTRY = re.compile(r"@(?P<kind>\w+)\{(?P<key>\w+),\n(?P<fields>.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},$", re.MULTILINE)
_KEY = re.compile(r"@(\w+)")


@dataclass(frozen=True)
class Reference:
    """An entry of the bibliography.

    Parameters
    ----------
    key : str
    fields : mapping
    bibtex : str
        The entry as it stands in the file.
    """

    key: str
    fields: Mapping[str, str]
    bibtex: str

    @property
    def short(self) -> str:
        """For a running text: ``Liu et al., 2023``."""
        names = self.fields["author"].split(" and ")
        family = names[0].partition(",")[0]
        if len(names) > 2:
            family += " et al."
        elif len(names) == 2:
            family += f" and {names[1].partition(',')[0]}"
        return f"{family}, {self.fields['year']}"

    @property
    def text(self) -> str:
        """For a list of references, without the DOI."""
        fields = self.fields
        kinds = ("journal", "booktitle", "publisher", "howpublished")
        where = next((fields[kind] for kind in kinds if kind in fields), "")
        if "volume" in fields:
            where += f" {fields['volume']}"
            where += f"({fields['number']})" if "number" in fields else ""
        if "pages" in fields:
            where += f", {fields['pages'].replace('--', '–')}"
        return f"{_author_list(fields['author'])} ({fields['year']}). {fields['title']}. {where}."

    @property
    def doi(self) -> str:
        """Empty where there is none."""
        return self.fields.get("doi", "")


def _author_list(authors: str) -> str:
    names = []
    for author in authors.split(" and "):
        family, _, given = author.partition(", ")
        initials = "".join(part[0] for part in re.split(r"[ -]", given) if part)
        names.append("et al." if author == "others" else f"{family} {initials}".strip())
    return ", ".join(names)


@cache
def _all() -> Mapping[str, Reference]:
    return {
        match["key"]: Reference(
            match["key"], dict(_FIELD.findall(match["fields"] + "\n")), match[0]
        )
        for match in _ENTRY.finditer(read_data("references.bib"))
    }


def cited_keys(text: str) -> list[str]:
    """Keys cited in Markdown (``[@A; @B]``), in the order of their first appearance."""
    groups = re.findall(r"\[(@[^\]]+)\]", text)
    return list(dict.fromkeys(key for group in groups for key in _KEY.findall(group)))


def references(keys: Iterable[str]) -> list[Reference]:
    """The entries of these keys, by first author and year.

    Raises
    ------
    KeyError
        If a key is not in the bibliography.
    """
    known = _all()
    return sorted((known[key] for key in keys), key=lambda r: (r.text.lower(), r.key))
