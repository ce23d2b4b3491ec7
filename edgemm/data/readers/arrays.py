"""`.npz` files under a description: arrays chosen, renamed, scaled and laid out."""

from __future__ import annotations

from edgemm.data.readers.description import Description
from edgemm.data.readers.rules import Rule, finish, join_columns
from edgemm.data.readers.source import Coverage, ReaderSource
from edgemm.data.samples import Sample, Source
from edgemm.errors import DataError, did_you_mean


def open_arrays(description: Description) -> Source:
    """Returns the samples of an `.npz` file or a folder of them.

    Raises:
        DataError: It is damaged, or has no array of a name that was said.
    """
    from edgemm.data.sources import open_npz

    source = open_npz(description.source)
    if not description.rules:
        return source
    return ArraySamples(description, source)


class ArraySamples(ReaderSource):
    """Arrays of another source by rules."""

    def __init__(self, description: Description, source: Source) -> None:
        """Looks for the arrays.

        Raises:
            DataError: One is not there.
        """
        rules = description.rules
        if not description.inputs:
            taken = {place for rule in rules.values() for place in rule.at or (rule.name,)}
            rules = {name: Rule(name) for name in source.names if name not in taken} | rules
        super().__init__(description.origin, rules)
        self._source, self._rules = source, rules
        for name, rule in rules.items():
            for place in rule.at or (name,):
                if place not in source.names:
                    raise DataError(
                        f"{description.origin}: no array '{place}' for '{name}' "
                        f"(arrays: {', '.join(source.names)}).",
                        hint=did_you_mean(place, source.names, f"say it: inputs: {{{name}: {{array: ...}}}}"),
                    )
            self.coverage[name] = Coverage(len(source), len(source))

    def __len__(self) -> int:
        return len(self._source)

    def _row(self, index: int) -> Sample:
        row, where = self._source[index], self._source.locate(index)
        return {
            name: finish(rule, join_columns([row[place] for place in rule.at or (name,)]), where)
            for name, rule in self._rules.items()
        }

    def locate(self, index: int) -> str:
        """Returns where the row is in the `.npz` file."""
        return self._source.locate(index)
