"""docs/faults.md and the marks `@pytest.mark.fault(n)` of the tests say the same."""

from fault_marks import DOC, fault_marks, fault_titles, rewritten

TEXT, MARKS = DOC.read_text(), fault_marks()


def test_the_index_and_the_links_are_up_to_date():
    assert rewritten(TEXT, MARKS) == TEXT, "write `make faults`"


def test_every_fault_has_a_test():
    assert fault_titles(TEXT).keys() - MARKS.keys() == set()


def test_every_mark_has_a_fault():
    assert MARKS.keys() - fault_titles(TEXT).keys() == set()
