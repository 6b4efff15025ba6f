"""Random streams are named, repeat, and differ."""

import pytest

from distillery.core.seeding import numpy_generator, stream_seed, torch_generator


def test_same_name_same_numbers_other_name_other_numbers():
    assert stream_seed(0, "a", 1) == stream_seed(0, "a", 1)
    assert len({stream_seed(0, "a"), stream_seed(0, "b"), stream_seed(1, "a"), stream_seed(0, "a", "b")}) == 4
    assert numpy_generator(3, "x").integers(1000) == numpy_generator(3, "x").integers(1000)
    assert torch_generator(3, "x").initial_seed() == torch_generator(3, "x").initial_seed()


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1"):
        stream_seed(-1)
