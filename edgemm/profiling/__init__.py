"""Measures what an opened model takes on this machine, and writes it down.

Device side: numpy and the standard library.

    watch = ResourceWatch()                                        # edgemm.profiling.resources, before opening
    with open_session(file) as session:
        measurement = profile_session(session, feeds, Plan(runs=2000), watch)   # edgemm.profiling.session
    problems = check(measurement.report | ...)                     # edgemm.profiling.report: the schema

Everything that shows a report (the command line, HTML, a comparison) reads one plain JSON object and measures
nothing.
"""

from __future__ import annotations
