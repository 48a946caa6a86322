"""TensorBoard's events are cut back to the checkpoint."""

import errno

import pytest
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment.events import Events, trim
from experiment.files import FileError


def log(folder, *steps):
    """A file of its own, as every process of a run writes."""
    logger = Logger(str(folder), [Events(folder)])
    for step in steps:
        logger.record("train/loss", 10 * step)
        logger.record("eval/success", step)
        logger.dump(step)
    logger.close()


def scalars(folder, tag):
    files = sorted(folder.glob("events.out.tfevents.*"))
    return [(e.step, e.value) for f in files for e in EventAccumulator(str(f)).Reload().Scalars(tag)]


def test_events_after_the_checkpoint_go(tmp_path):
    """Kind: a log that is ahead of the checkpoint that the run goes on from."""
    log(tmp_path, 32, 64, 96, 128)
    before = [path.read_bytes() for path in tmp_path.iterdir()]
    trim(tmp_path, 128)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == before
    trim(tmp_path, 64)
    assert scalars(tmp_path, "train/loss") == [(32, 320), (64, 640)]
    assert scalars(tmp_path, "eval/success") == [(32, 32), (64, 64)]
    assert len(list(tmp_path.iterdir())) == 1


def test_events_that_a_killed_process_left_unfinished(tmp_path):
    log(tmp_path, 32, 64, 96)
    (file,) = tmp_path.iterdir()
    for cut in (1, 9, 40):
        file.write_bytes(file.read_bytes()[:-cut])
        trim(tmp_path, 64)
        assert scalars(tmp_path, "eval/success")[0] == (32, 32)
        assert all(step <= 64 for step, _ in scalars(tmp_path, "train/loss"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    logger = Logger(str(tmp_path), [Events(tmp_path)])

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stable_baselines3.common.logger.SummaryWriter.flush", fail)
    with pytest.raises(FileError, match=f"^{tmp_path}: TensorBoard's events cannot be written: No space left on dev"):
        logger.dump(3)
