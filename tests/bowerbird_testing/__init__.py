"""Fakes that behave: simulators and builders that the test suites share. Nothing here is imported by the product."""
