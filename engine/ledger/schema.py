"""The tables of ledger.db.

Keys are positions, or the 16 bytes of an offer id: both rise with time, so that inserts stay at one end of a table.
Only `parts` has a second index: receipts name a message as the gateway does.
"""

from __future__ import annotations

VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (
    one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL, now_ms INTEGER NOT NULL,
    longest_ms INTEGER NOT NULL  -- the longest window a cap ever asked for
);
INSERT OR IGNORE INTO progress VALUES (1, -1, -1, 0);
CREATE TABLE IF NOT EXISTS reservations (position INTEGER PRIMARY KEY, now_ms INTEGER NOT NULL, body BLOB NOT NULL);
CREATE VIEW IF NOT EXISTS reservations_read AS
    SELECT position,
           json_extract(value, '$[0]') AS offer_id,
           json_extract(value, '$[1]') AS subject,
           json_extract(value, '$[2]') AS user,
           json_extract(value, '$[3][0]') AS scenario,
           json_extract(value, '$[3][1]') AS category,
           json_extract(value, '$[3][2]') AS partner,
           json_extract(value, '$[3][3]') AS channel,
           json_extract(value, '$[4]') AS flags,  -- 1 counts, 2 withheld, 8 kept for ever
           json_extract(value, '$[5]') AS at_ms,
           json_extract(value, '$[6]') AS code,   -- pool#number
           json_extract(value, '$[7]') AS taken   -- day in ms, and by benefit: id, cost in fen, users counted?
    FROM reservations, json_each(CAST(body AS TEXT));
CREATE TABLE IF NOT EXISTS code_leases (
    pool TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    expired INTEGER,             -- position of the record that recalled it
    PRIMARY KEY (pool, first, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (offer_id BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (position INTEGER PRIMARY KEY, now_ms INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS decision_users (
    position INTEGER PRIMARY KEY, now_ms INTEGER NOT NULL,
    users BLOB NOT NULL          -- uint32 crc32 of the user of every decision of that commit
);
CREATE VIEW IF NOT EXISTS decisions_read AS
    SELECT position,
           json_extract(value, '$.decision_id') AS decision_id,
           json_extract(value, '$.user') AS user,
           json_extract(value, '$.scenario') AS scenario,
           json_extract(value, '$.outcome') AS outcome,
           json_extract(value, '$.reason') AS reason,
           value AS body
    FROM decisions, json_each(CAST(body AS TEXT));
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
CREATE TABLE IF NOT EXISTS parts (
    number INTEGER PRIMARY KEY,  -- rises with time
    gateway TEXT NOT NULL, gateway_id TEXT NOT NULL, offer_id BLOB NOT NULL, dispatch_id TEXT NOT NULL,
    part INTEGER NOT NULL, parts INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    UNIQUE (gateway, gateway_id)
);
CREATE TABLE IF NOT EXISTS part_states (
    dispatch_id TEXT NOT NULL, part INTEGER NOT NULL, state TEXT NOT NULL, code TEXT, at_ms INTEGER NOT NULL,
    PRIMARY KEY (dispatch_id, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unmatched (
    gateway TEXT NOT NULL, gateway_id TEXT NOT NULL, state TEXT NOT NULL, code TEXT, at_ms INTEGER NOT NULL,
    kept_ms INTEGER NOT NULL, PRIMARY KEY (gateway, gateway_id, state)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fallbacks (
    offer_id BLOB PRIMARY KEY, channel TEXT NOT NULL, after_ms INTEGER NOT NULL,
    due_ms INTEGER               -- null until the first channel has answered
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS awaited (
    due_ms INTEGER NOT NULL, dispatch_id TEXT NOT NULL, PRIMARY KEY (due_ms, dispatch_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consents (
    user TEXT NOT NULL, purpose TEXT NOT NULL, granted INTEGER NOT NULL, at_ms INTEGER NOT NULL, source TEXT,
    PRIMARY KEY (user, purpose)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evidence (  -- what users said of consent in their own words; never changed
    number INTEGER PRIMARY KEY,
    user TEXT NOT NULL, purpose TEXT NOT NULL, granted INTEGER NOT NULL, at_ms INTEGER NOT NULL, source TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS redemptions (
    key BLOB PRIMARY KEY,        -- 16 bytes of feed and event id
    user TEXT NOT NULL, at_ms INTEGER NOT NULL, offer_id TEXT, benefit TEXT, amount_fen INTEGER,
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refunds (
    key BLOB PRIMARY KEY, user TEXT NOT NULL, at_ms INTEGER NOT NULL, offer_id TEXT, benefit TEXT, amount_fen INTEGER,
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS links (  -- claim links that were redeemed
    offer_id BLOB PRIMARY KEY, at_ms INTEGER NOT NULL, caller TEXT NOT NULL, body TEXT NOT NULL,
    told INTEGER NOT NULL,       -- 1: the redemption is in the journal
    amount_fen INTEGER           -- as the redemption says, for a telling that a crash kept from the journal
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, position INTEGER NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    body BLOB NOT NULL, hash BLOB NOT NULL  -- of the row before, and of everything else in this one
);
CREATE TABLE IF NOT EXISTS audit_aliases (user TEXT PRIMARY KEY, alias BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pauses (scenario TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
"""

LATER_COLUMNS = (("links", "amount_fen", "INTEGER"),)
"""What a file of an earlier program lacks; each may be empty."""
