"""The report of a run for people: one page with charts that opens offline, and a table for the terminal."""

from __future__ import annotations

from tunery.report.page import write_page
from tunery.report.summary import before_after_table, summary_text

__all__ = ["before_after_table", "summary_text", "write_page"]
