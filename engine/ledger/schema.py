"""The tables of ledger.db.

Ids are the 16 bytes of an offer id, so that keys rise with time and inserts stay at one end of a table. No table has a
second index: looked up by user means read by time.
"""

from __future__ import annotations

VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (
    mark INTEGER PRIMARY KEY, scenario TEXT NOT NULL, category TEXT NOT NULL, partner TEXT NOT NULL,
    channel TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS reservations (
    offer_id BLOB PRIMARY KEY, subject TEXT NOT NULL,
    user TEXT,                   -- where it is not the subject
    mark INTEGER NOT NULL,
    flags INTEGER NOT NULL,      -- 1 counts, 2 withheld, 8 kept for ever
    at_ms INTEGER NOT NULL,      -- the log's now
    position INTEGER NOT NULL,   -- of the commit that brought it
    code TEXT,
    released INTEGER             -- position of the commit that gave it back
) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS reservations_read AS
    SELECT hex(offer_id) AS offer_id, subject, coalesce(user, subject) AS user, scenario, category, partner, channel,
           flags, at_ms, position, code, released FROM reservations JOIN marks USING (mark);
CREATE TABLE IF NOT EXISTS offers (
    offer_id BLOB PRIMARY KEY, user TEXT NOT NULL, subject TEXT NOT NULL, scenario TEXT NOT NULL,
    channel TEXT NOT NULL, service INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
    position INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (offer_id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dispatches (
    offer_id BLOB NOT NULL, dispatch_id TEXT NOT NULL, seq INTEGER NOT NULL, state TEXT NOT NULL,
    at_ms INTEGER NOT NULL, epoch INTEGER NOT NULL,
    applied INTEGER NOT NULL,    -- 0: came after a final state and changed nothing (G1)
    gateway_id TEXT, code TEXT,
    PRIMARY KEY (offer_id, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS submitting (offer_id BLOB PRIMARY KEY, dispatch_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    decision_id BLOB PRIMARY KEY, user TEXT NOT NULL, position INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consents (
    user TEXT NOT NULL, purpose TEXT NOT NULL, granted INTEGER NOT NULL, at_ms INTEGER NOT NULL, source TEXT,
    PRIMARY KEY (user, purpose)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pauses (scenario TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
"""

USER_COLUMNS = (
    ("reservations", "user"),
    ("reservations", "subject"),
    ("offers", "user"),
    ("offers", "subject"),
    ("decisions", "user"),
    ("consents", "user"),
)
"""Where users are named, for `forget`."""
