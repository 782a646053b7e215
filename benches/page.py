"""Puts measured tables into the page of results."""

import pathlib

PAGE = pathlib.Path(__file__).resolve().parent / "README.md"


def write(begin, end, text):
    """Replaces what stands between the lines `begin` and `end`."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(begin)[0], page.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
