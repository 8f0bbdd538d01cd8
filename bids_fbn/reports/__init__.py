"""Reports: what was written → a page to look at, and the words for a methods section.

============================  =================================================================
:func:`write_report`          the page of a participant, ``sub-X.html``, and its figures
:func:`write_citation`        ``logs/CITATION.{md,html,bib}``
:func:`methods_text`          the same words, in Markdown
:class:`Problem`              a run that failed or was left out, for the top of the page
============================  =================================================================

A page reads only what stands in the output dataset, works from a folder without any network, and
never computes a result of its own.
"""

from bids_fbn.reports.methods import methods_text, write_citation
from bids_fbn.reports.participant import Problem, write_report

__all__ = ["Problem", "methods_text", "write_citation", "write_report"]
