"""From a committed offer to a gateway: claim, address, text, submit, outcome (rules D6-D8, G1-G5, O2, I2)."""
