"""Recordings of sensors, MCAP files and rosbag2 folders, as samples aligned by time.

Opening reads the recording once for the times of the topics that are used; messages are read again, by their time
of recording, when a sample is asked for. A message's time is the stamp in its header, the time of recording where
it has none.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from edgemm.data.readers.align import AlignedSamples, Track
from edgemm.data.readers.description import Align, Description
from edgemm.data.readers.messages import _at, member, members, message_array, stamp
from edgemm.data.readers.rules import Rule, finish
from edgemm.data.readers.source import ReaderSource
from edgemm.errors import DataError, did_you_mean

_AHEAD_NS = 1_000_000_000
_AHEAD_BYTES = 16 * 2**20
"""Messages of a topic are read ahead by at most so much time and memory."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What a recording says of a topic.

    Attributes:
        kind: Name of the message type.
        has_header: Its messages are CDR and begin with a std_msgs/Header, so that the stamp is in the first bytes.
        count: How many messages there are, where the recording says so.
    """

    kind: str
    has_header: bool
    count: int


class Recording(Protocol):
    """A file or folder with messages by topic."""

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics by name."""
        ...

    def messages(self, topics: set[str], start: int, stop: int) -> Iterator[tuple[str, int, Any]]:
        """Yields topic, time of recording and an undecoded message, from `start` up to but without `stop`."""
        ...

    def raw(self, packed: Any) -> bytes:
        """Returns the bytes of an undecoded message."""
        ...

    def decode(self, packed: Any) -> Any:
        """Returns a message."""
        ...


def open_mcap(description: Description) -> ReaderSource:
    """Returns the samples of an MCAP file.

    Raises:
        DataError: It is damaged, has no such topic, or nothing matches.
        MissingExtraError: The `robotics` extra is not installed.
    """
    from edgemm.data.readers.mcap_file import McapFile

    return _open(description, McapFile(description.source))


def open_rosbag2(description: Description) -> ReaderSource:
    """Returns the samples of a rosbag2 folder.

    Raises:
        DataError: It is damaged, has no such topic, or nothing matches.
        MissingExtraError: The `robotics` extra is not installed.
    """
    from edgemm.data.readers.rosbag2_folder import Rosbag2Folder

    return _open(description, Rosbag2Folder(description.source))


def _open(description: Description, recording: Recording) -> ReaderSource:
    rules = description.rules
    topics = recording.topics
    if not description.inputs:
        shown = "\n".join(
            f"  {name.strip('/').replace('/', '_')}: {{topic: {name}}}   # {topic.kind}, {topic.count} messages"
            for name, topic in topics.items()
        )
        raise DataError(
            f"{description.origin}: a recording of {len(topics)} topics, and nothing says which are inputs.",
            hint=f"write a description file:\nsource: {description.source.name}\ninputs:\n{shown}",
        )
    for name, rule in rules.items():
        if rule.place not in topics:
            raise DataError(
                f"{description.origin}: no topic '{rule.place}' for '{name}' (topics: {', '.join(topics)}).",
                hint=did_you_mean(rule.place, topics, f"say it: inputs: {{{name}: {{topic: ...}}}}"),
            )
    indices = _index(description.origin, recording, rules)
    tracks: dict[str, Track] = {
        name: TopicTrack(description.origin, recording, rule, *indices[name]) for name, rule in rules.items()
    }
    how = description.align or Align()
    if not how.to:  # not the label: what a model is fed sets the pace
        how = replace(how, to=min(description.inputs, key=lambda name: len(indices[name][0])))
    return AlignedSamples(description.origin, tracks, how)


def _index(
    origin: str, recording: Recording, rules: Mapping[str, Rule]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns array -> its messages' times, times of recording and numbers among those recorded at once."""
    found: dict[str, array[int]] = {name: array("q") for name in rules}
    wanted = {rule.place for rule in rules.values()}
    last: dict[str, tuple[int, int]] = {}
    for topic, logged, packed in recording.messages(wanted, 0, 2**63 - 1):
        before, number = last.get(topic, (-1, 0))
        number = number + 1 if before == logged else 0
        last[topic] = (logged, number)
        for name, rule in rules.items():
            if rule.place == topic:
                where = f"{origin}: topic '{topic}' at {logged / 1e9:.3f} s"
                found[name].extend((_time(recording, packed, rule, logged, where), logged, number))
    result = {}
    for name, entries in found.items():
        if not entries:
            raise DataError(f"{origin}: topic '{rules[name].place}' has no messages.", hint="choose another topic")
        table = np.asarray(entries, np.int64).reshape(-1, 3)
        table = table[np.lexsort(table.T[::-1])]
        result[name] = (table[:, 0], table[:, 1], table[:, 2])
    return result


def _time(recording: Recording, packed: Any, rule: Rule, logged: int, where: str) -> int:
    if rule.time == "log":
        return logged
    topic = recording.topics[rule.place]
    if rule.time is not None:
        value = _at(recording.decode(packed), rule.time, where)
        own = stamp({"timestamp": value}) if members(value) else round(float(value) * 1e9)
        return logged if own is None else own
    if topic.has_header:
        data = recording.raw(packed)
        seconds, rest = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
        return seconds * 1_000_000_000 + rest or logged
    message = recording.decode(packed)
    own = (
        stamp(message)
        if member(message, "header") is not None or member(message, "timestamp") is not None
        else None
    )
    return logged if own is None else own


class TopicTrack:
    """The messages of a topic as samples of one modality."""

    def __init__(
        self,
        origin: str,
        recording: Recording,
        rule: Rule,
        times: np.ndarray,
        logged: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        self.times = times
        self.window = rule.window or 1
        self._origin = origin
        self._recording = recording
        self._rule = rule
        self._logged, self._numbers = logged, numbers
        self._kept: dict[tuple[int, int], Any] = {}

    def row(self, first: int, last: int) -> np.ndarray:
        """Returns one message, or a window of them along a new first axis."""
        messages = self._read(first, last)
        where = self.locate(last)
        if self._rule.window is None:
            return message_array(messages[0], self._rule, where)
        part = Rule(self._rule.name, field=self._rule.field, size=self._rule.size, channels=self._rule.channels)
        rows = [message_array(m, part, where) for m in messages]
        if any(row.shape != rows[0].shape for row in rows):
            raise DataError(f"{where}: the {len(rows)} messages of a window differ in shape.", hint="leave it out")
        return finish(replace(self._rule, window=None), np.stack(rows), where)

    def _read(self, first: int, last: int) -> list[Any]:
        keys = [(int(self._logged[i]), int(self._numbers[i])) for i in range(first, last + 1)]
        if any(key not in self._kept for key in keys):
            self._fill(min(keys)[0], max(keys)[0])
        return [self._recording.decode(self._kept[key]) for key in keys]

    def _fill(self, start: int, end: int) -> None:
        """Keeps the messages from `start` to `end`, and some that follow: they are asked for next, most often."""
        self._kept = {}
        size, before, number = 0, -1, 0
        for _, logged, packed in self._recording.messages({self._rule.place}, start, end + _AHEAD_NS):
            if logged > end and logged != before and size > _AHEAD_BYTES:
                break
            number = number + 1 if logged == before else 0
            before = logged
            self._kept[logged, number] = packed
            size += len(self._recording.raw(packed))

    def locate(self, index: int) -> str:
        """Returns the topic and the time of a message."""
        return f"{self._origin}: topic '{self._rule.place}' at {self.times[index] / 1e9:.3f} s"
