import pytest

from scanrl.types import Spec

BOX, CHOICE = Spec((4,), "continuous", 3), Spec((4,), "discrete", 3)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "mine, other, message",
    [
        (BOX, BOX, None),
        (BOX, Spec((4,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3, "A-v0"), None),
        (BOX, Spec((5,), "continuous", 3), "observation_shape: expected (4,), got (5,)"),
        (BOX, CHOICE, "action_kind: expected continuous, got discrete"),
        (BOX, Spec((4,), "continuous", 2), "action_size: expected 3, got 2"),
    ],
)
def test_what_differs_is_named(mine, other, message, recorded):
    assert mine.difference(other, recorded=recorded) == message


def test_recordings_may_lack_the_highest_action_and_a_model_may_not():
    fewer, more = Spec((4,), "discrete", 2), Spec((4,), "discrete", 4)
    assert CHOICE.difference(fewer) == "action_size: expected 3, got 2"
    assert CHOICE.difference(fewer, recorded=True) is None
    assert CHOICE.difference(more, recorded=True) == "action_size: expected at most 3, got 4"
