"""The web side: events in over HTTP, and what operators read back."""
