"""What happened, for people: effect of scenarios, settlement with partners, activity. No I/O."""
