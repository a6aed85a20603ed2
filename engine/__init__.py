"""opportune: real-time scenario marketing. The folders follow the flow of an event; see ARCHITECTURE.md."""

__version__ = "0.1.0"
