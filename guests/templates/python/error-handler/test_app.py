"""Tests of the error handler in plain Python: python3 -m unittest"""

import unittest

import app
from millrace import Cause, decision
from millrace.testing import Failed, Sample, Tester


class Deciding(unittest.TestCase):
    def test_a_busy_service_is_waited_for_twice_as_long_each_time_and_at_most_a_minute(self) -> None:
        decided = Tester(app.decide).decide(Failed(class_="busy", attempt=attempt) for attempt in [1, 2, 3, 20])
        self.assertEqual(decided, [decision.retry_after(ms) for ms in [1000, 2000, 4000, 60_000]])

    def test_test_messages_are_dropped(self) -> None:
        decided = Tester(app.decide).decide([Failed(Sample(headers={"test": "1"}), Cause.TRAP)])
        self.assertEqual(decided, [decision.drop("a test message")])

    def test_rejected_messages_are_given_up_and_the_policy_decides_about_all_others(self) -> None:
        decided = Tester(app.decide).decide([Failed(cause=Cause.REJECT), Failed(cause=Cause.TIMEOUT)])
        self.assertEqual(decided, [decision.dead_letter(), decision.policy()])


if __name__ == "__main__":
    unittest.main()
