"""Where records come from and state goes: journal, sources, checkpoints, and the loop around the pipeline."""
