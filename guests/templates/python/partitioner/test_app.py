"""Tests of the partitioner in plain Python: python3 -m unittest"""

import unittest

import app
from millrace.testing import Sample, Tester


class Regions(unittest.TestCase):
    def test_a_region_has_one_partition(self) -> None:
        keys = ["eu-1", "us-1", "eu-2", "us-2", "eu-3"]
        eu, us, *more = Tester(app.choose, partitions=16).assign(Sample(key) for key in keys)
        self.assertEqual(more, [eu, us, eu])
        self.assertNotEqual(eu, us)

    def test_messages_without_a_key_have_a_partition_too(self) -> None:
        (partition,) = Tester(app.choose, partitions=3).assign([Sample(value="no key")])
        self.assertLess(partition, 3)


if __name__ == "__main__":
    unittest.main()
