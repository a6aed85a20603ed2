"""Bytes of records to rows of events: the compiled scanner, and the typed reader behind it."""
