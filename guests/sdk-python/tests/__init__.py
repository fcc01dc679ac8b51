"""Tests of the SDK: python3 -m unittest, from the SDK's folder."""
