import pickle

import torch

from fbrl.memory import Memory

B, M, D = 2, 5, 3


def filled(length: list[int]) -> Memory:
    """Slot j of row b holds the number 10 b + j."""
    slots = (10 * torch.arange(len(length)).view(-1, 1, 1) + torch.arange(M).view(1, -1, 1)).expand(-1, M, D)
    return Memory(slots.float(), torch.tensor(length))


def test_empty_has_nothing_readable():
    memory = Memory.empty(B, M, D, dtype=torch.float64)
    assert memory.slots.shape == (B, M, D)
    assert memory.slots.dtype == torch.float64
    assert memory.length.dtype == torch.int64
    assert memory.length.tolist() == [0, 0]
    assert not memory.readable.any()


def test_empty_on_a_device():
    memory = Memory.empty(B, M, D, device="meta")
    assert memory.slots.device.type == memory.length.device.type == memory.readable.device.type == "meta"


def test_the_rightmost_slots_are_readable():
    assert filled([0, 1, 3, 5]).readable.int().tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]


def test_reset_forgets_only_the_rows_that_start():
    memory = filled([3, 5]).reset(torch.tensor([True, False]))
    assert memory.length.tolist() == [0, 5]
    assert memory.readable.sum(dim=1).tolist() == [0, 5]


def test_push_writes_the_newest_slot_and_drops_the_oldest():
    memory = filled([2, 5]).push(torch.tensor([[7.0] * D, [8.0] * D]))
    assert memory.slots[..., 0].tolist() == [[1, 2, 3, 4, 7], [11, 12, 13, 14, 8]]
    assert memory.length.tolist() == [3, 5]  # the second row was full


def test_push_after_reset_reads_only_the_new_episode():
    memory = filled([4, 4]).reset(torch.tensor([False, True])).push(torch.full((B, D), 9.0))
    read = [row[mask][:, 0].tolist() for row, mask in zip(memory.slots, memory.readable, strict=True)]
    assert read == [[1, 2, 3, 4, 9], [9]]


def test_window_of_one():
    memory = Memory.empty(B, 1, D).push(torch.full((B, D), 1.0)).push(torch.full((B, D), 2.0))
    assert memory.slots[..., 0].tolist() == [[2], [2]]
    assert memory.length.tolist() == [1, 1]


def test_a_memory_is_a_value():
    """No method changes the memory that it is called on."""
    memory = filled([2, 5])
    slots, length = memory.slots.clone(), memory.length.clone()
    memory.push(torch.ones(B, D))
    memory.reset(torch.tensor([True, True]))
    assert torch.equal(memory.slots, slots)
    assert torch.equal(memory.length, length)


def test_pickles():
    memory = filled([2, 5])
    copy = pickle.loads(pickle.dumps(memory))
    assert isinstance(copy, Memory)
    assert torch.equal(copy.slots, memory.slots)
    assert torch.equal(copy.length, memory.length)
