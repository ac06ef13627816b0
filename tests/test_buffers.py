"""A buffer belongs to one borrower at a time."""

import pytest

from tuunel.buffers import BUFFER_SIZE, MAX_BODY, BufferPool


def test_a_buffer_holds_the_largest_body_its_type_and_a_records_overhead() -> None:
    buffer = BufferPool().borrow()
    assert len(buffer) == BUFFER_SIZE >= 1 + MAX_BODY + 3 + 16
    buffer[1 : 1 + MAX_BODY] = bytes(MAX_BODY)


def test_a_returned_buffer_is_lent_again() -> None:
    pool = BufferPool()
    first = pool.borrow()
    memory = first.obj
    pool.give_back(first)
    assert pool.borrow().obj is memory


def test_two_borrowers_never_share_a_buffer() -> None:
    pool = BufferPool()
    first, second = pool.borrow(), pool.borrow()
    assert first.obj is not second.obj


def test_a_returned_buffer_cannot_be_used_or_returned_again() -> None:
    pool = BufferPool()
    buffer = pool.borrow()
    pool.give_back(buffer)
    with pytest.raises(ValueError, match="released"):
        buffer[0] = 1
    with pytest.raises(ValueError, match="released"):
        pool.give_back(buffer)


def test_only_borrowed_buffers_are_taken_back() -> None:
    with pytest.raises(TypeError):
        BufferPool().give_back(memoryview(bytearray(BUFFER_SIZE)))


def test_no_more_than_keep_free_buffers_are_kept_and_lent_counts_the_rest() -> None:
    pool = BufferPool(keep=1)
    first, second = pool.borrow(), pool.borrow()
    kept = first.obj
    assert pool.lent == 2
    pool.give_back(first)
    pool.give_back(second)
    assert pool.lent == 0
    assert pool.borrow().obj is kept
    assert pool.borrow().obj is not kept
