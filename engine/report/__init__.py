"""What happened, for people: effect of scenarios, settlement with partners. No I/O."""
