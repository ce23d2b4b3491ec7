"""rosbag2 folders (SQLite or MCAP storage) through the `rosbags` package; ROS itself is not needed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemm._optional import require
from edgemm.data.readers.recording import Topic
from edgemm.errors import DataError

_WHY = "read rosbag2 recordings"


class Rosbag2Folder:
    """One rosbag2 folder. Types that the latest ROS 2 does not define are decoded by the folder's definitions."""

    def __init__(self, path: Path) -> None:
        """Opens the storage.

        Raises:
            DataError: No rosbag2, or a damaged one.
            MissingExtraError: The `robotics` extra is not installed.
        """
        rosbag2 = require("rosbags.rosbag2", extra="robotics", why=_WHY)
        typesys = require("rosbags.typesys", extra="robotics", why=_WHY)
        self._path = path
        self._errors = (rosbag2.ReaderError, OSError, ValueError)
        self._reader = rosbag2.Reader(path)
        try:
            self._reader.open()
        except Exception as error:  # what apsw raises has no base here
            raise DataError(
                f"{path}: the recording cannot be read: {error}.", hint="`ros2 bag reindex` mends a folder"
            ) from error
        weakref.finalize(self, self._reader.close)
        self._types = typesys.get_typestore(typesys.Stores.LATEST)
        self.topics: dict[str, Topic] = {}
        for connection in self._reader.connections:
            self._register(typesys, connection)
            known = self.topics.get(connection.topic)
            header = self._has_header(connection.msgtype) and (known is None or known.has_header)
            count = connection.msgcount + (known.count if known else 0)
            self.topics[connection.topic] = Topic(connection.msgtype, header, count)
        self.topics = dict(sorted(self.topics.items()))

    def _register(self, typesys: Any, connection: Any) -> None:
        """Adds the definition of a message that the folder holds and the latest ROS 2 does not."""
        definition = connection.msgdef
        if connection.msgtype in self._types.types or not definition.data or definition.format.name != "MSG":
            return
        found = typesys.get_types_from_msg(definition.data, connection.msgtype)
        self._types.register({n: t for n, t in found.items() if n not in self._types.types})

    def _has_header(self, kind: str) -> bool:
        if kind not in self._types.fielddefs:
            return False
        _, entries = self._types.fielddefs[kind]
        return bool(entries) and entries[0][1][1] == "std_msgs/msg/Header"

    def messages(self, topics: set[str], start: int, stop: int) -> Iterator[tuple[str, int, Any]]:
        """Yields topic, time of recording and the undecoded message.

        Raises:
            DataError: The storage is damaged.
        """
        connections = [c for c in self._reader.connections if c.topic in topics]
        found = self._reader.messages(connections=connections, start=start or None, stop=stop)
        while True:
            try:
                connection, logged, data = next(found)
            except StopIteration:
                return
            except self._errors as error:
                raise DataError(
                    f"{self._path}: the recording cannot be read: {error}.",
                    hint="`ros2 bag reindex` mends a folder",
                ) from error
            yield connection.topic, logged, (connection.msgtype, data)

    def raw(self, packed: Any) -> bytes:
        """Returns the bytes of an undecoded message."""
        return bytes(packed[1])

    def decode(self, packed: Any) -> Any:
        """Returns the message.

        Raises:
            DataError: Its type is not known, or it is damaged.
        """
        kind, data = packed
        if kind not in self._types.types:
            raise DataError(
                f"{self._path}: nothing defines messages of type '{kind}'.",
                hint="record with MCAP storage, which keeps definitions, or write a reader class",
            )
        try:
            return self._types.deserialize_cdr(data, kind)
        except Exception as error:
            raise DataError(
                f"{self._path}: a message of type '{kind}' cannot be decoded: {error}.",
                hint="its definition may be of another version of ROS",
            ) from error
