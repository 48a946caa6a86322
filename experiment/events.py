"""TensorBoard's events of a run: written beside the training, and cut back to the checkpoint that it goes on from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from experiment import files
from experiment.files import FileError

PENDING = ("name_to_value", "name_to_count", "name_to_excluded")  # of a ``Logger``


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within it, what cannot be written to the run's events is a FileError that names the folder."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{folder}: TensorBoard's events cannot be written: {error.strerror or error}") from error


class Events(TensorBoardOutputFormat):
    """Stable-Baselines3's, whose errors name the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes values; raises FileError where that cannot be done, as on a full disk."""
        with writing(self.folder):
            super().write(key_values, key_excluded, step)


def pending(logger: Logger | None) -> dict[str, dict[str, Any]]:
    """What was recorded and is not written yet."""
    return {name: dict(getattr(logger, name)) for name in PENDING} if logger is not None else {}


def logger_to(folder: Path | None, recorded: dict[str, dict[str, Any]]) -> Logger:
    """A logger into the folder, or nowhere, that goes on with what another had ``pending``."""
    logger = Logger(None, []) if folder is None else Logger(str(folder), [Events(folder)])
    for name, values in recorded.items():
        getattr(logger, name).update(values)
    return logger


def trim(folder: Path, last_step: int) -> None:
    """Takes the events of steps after ``last_step`` out of a run's files: they are made again."""
    for file in folder.glob("events.out.tfevents.*"):
        kept, taken_out = io.BytesIO(), False
        writer = RecordWriter(kept)
        for record in RawEventFileLoader(str(file)).Load():  # up to where a killed process left off
            if Event.FromString(record).step <= last_step:
                writer.write(record)
            else:
                taken_out = True
        if taken_out:
            files.write(file, kept.getvalue())
