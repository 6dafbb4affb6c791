"""Intervals and tests for paired measurements; nothing here knows what was measured."""
