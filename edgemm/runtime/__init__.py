"""The device side: opens a bundle and runs it. Imports numpy and the standard library only.

    from edgemm.runtime import open_session

    with open_session("digits.edgemm") as session:
        logits = session.run({"image": image, "audio": audio})["logits"]

A session checks its inputs, chains the engines of the stages, and keeps states between calls. One session may be
used from several threads at once: without states the calls run side by side, with states one after the other.
The backend (onnxruntime) is imported when a session opens.
"""

from __future__ import annotations

from edgemm.bundle import Schedule
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.opening import open_session
from edgemm.runtime.session import EngineSession, SessionOptions
from edgemm.runtime.tuning import Tuning, tune

__all__ = ["EngineSession", "FusionSession", "Schedule", "SessionOptions", "Tuning", "open_session", "tune"]
