import pytest

from connectors.kafka_client import Committed
from connectors.kafka_restore import note_of
from pipeline.errors import StateError

PLACE = ("in", 3)


@pytest.mark.parametrize("note", ['{"n":12}', '{"n":12,"config":"bab6b101065d"}'])
def test_a_note_says_which_commit_an_offset_is_of_and_older_ones_are_read(note):
    assert note_of(PLACE, Committed(7, note), "watch").n == 12


@pytest.mark.parametrize("note", ["", "{}", "hello", '{"n":"12"}'])
def test_a_note_of_somebody_else_is_refused_by_its_place(note):
    with pytest.raises(StateError, match=r"topic 'in', partition 3: offset 7 of group 'watch' was not committed by"):
        note_of(PLACE, Committed(7, note), "watch")
