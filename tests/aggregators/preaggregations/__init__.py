"""Tests of what is done to rows before a rule."""
