"""A day of a made-up city under faults, from one seed, through the real pipeline and ledger.

    python -m tests.simulation --seeds 200 --from 0

`plan` says which places and scenarios there are, in plain words; `content` turns them into what the engine takes.
`day` makes people and what they send, `faults` spoils it, `live` runs it (journal, pipeline, ledger, dispatcher,
crashes) in world time, `auditor` judges from the world's own records. `planted` breaks the engine on purpose.
"""
