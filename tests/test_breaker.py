"""The breaker: it opens at a flood of dead letters, stays shut at a trickle, and trusts again only after a while."""

from cdc_reactor.breaker import Breaker, BreakerLimits

LIMITS = BreakerLimits(share=0.05, consecutive=100, window=1_000, pause=30.0)


def test_a_trickle_below_the_share_never_opens_it():
    breaker = Breaker(LIMITS)

    answers = [breaker.note(24, 1, now) for now in range(1_000)]

    assert answers == [None] * 1_000


def test_it_opens_when_more_than_the_share_of_a_full_window_was_given_up():
    breaker = Breaker(LIMITS)

    answers = [breaker.note(9, 1, now) for now in range(100)]

    assert answers.index(30.0) == 99
    assert breaker.is_open(99)
    assert not breaker.is_open(129)


def test_a_share_of_less_than_a_window_tells_nothing_yet():
    breaker = Breaker(LIMITS)

    assert breaker.note(1, 99, 0.0) is None


def test_it_opens_at_so_many_in_a_row_whatever_the_window():
    breaker = Breaker(LIMITS)

    assert [breaker.note(0, 50, 0.0), breaker.note(0, 50, 0.0)] == [None, 30.0]


def test_one_success_breaks_the_row():
    breaker = Breaker(LIMITS)

    assert [breaker.note(0, 99, 0.0), breaker.note(1, 0, 0.0), breaker.note(0, 99, 0.0)] == [None, None, None]


def test_what_ends_while_it_is_open_does_not_lengthen_the_pause():
    breaker = Breaker(LIMITS)
    breaker.note(0, 100, 0.0)

    assert breaker.note(0, 500, 1.0) is None
    assert not breaker.is_open(30.0)


def test_after_a_pause_the_first_change_that_is_given_up_opens_it_again():
    breaker = Breaker(LIMITS)
    breaker.note(0, 100, 0.0)

    assert breaker.note(99, 1, 31.0) == 30.0


def test_after_a_tenth_of_the_window_went_well_it_is_trusted_as_before():
    breaker = Breaker(LIMITS)
    breaker.note(0, 100, 0.0)
    breaker.note(100, 0, 31.0)

    assert breaker.note(0, 1, 32.0) is None


def test_old_changes_leave_the_window():
    breaker = Breaker(LIMITS)
    breaker.note(950, 50, 0.0)
    breaker.note(1_000, 0, 1.0)

    assert breaker.note(960, 40, 2.0) is None
