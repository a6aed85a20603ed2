-- What every act begins with. The loader puts this before each file, and the table FOLLOWS before this.
--
-- A subject's grants are one string of records of 46 bytes, oldest first:
--   offer id, at_ms, number of the request, shard, released (number of the next request + 1, 0 not),
--   scenario, category, partner, channel, flags
local GRANT, SIZE = '<c16I6I6I2I6I4I2I2BB', 46
local COUNTS, WITHHELD, KEEP, SHADOW, DELIVERED = 1, 2, 8, 16, 32
local MINUTE_MS, MINUTES = 60000, 1560
local HISTORY = 2 ^ 40  -- engine.ledger.redis.log

local function has(flags, bit_) return bit.band(flags, bit_) ~= 0 end

-- Write the grant that begins at a place of a subject's grants once more, as it is now.
local function put_grant(key, value, at, g)
  local record = struct.pack(GRANT, g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10])
  redis.call('SET', key, value:sub(1, at - 1) .. record .. value:sub(at + SIZE), 'KEEPTTL')
end

-- Whether this shard is still the caller's, and the store still the one it wrote to.
-- ARGV: 1 epoch, 2 number of the last logged commit, 3 run id of the server
local function guard(meta_key)
  local meta = redis.call('HMGET', meta_key, 'epoch', 'logged', 'run')
  if not meta[1] or meta[3] ~= ARGV[3] then return 'behind' end
  if tonumber(meta[1]) > tonumber(ARGV[1]) then return 'fenced' end
  if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then return 'behind' end
  return false
end

-- Whether the shard is still being healed by whoever began with this token (engine.ledger.redis.healing).
local function is_healing(meta_key, token) return redis.call('HGET', meta_key, 'healing') == token end

-- A shard is whole again: {tenant}r names the server and every shard that is.
local function join(tenant, run, shard)
  if redis.call('HGET', tenant .. 'r', 'run') ~= run then
    redis.call('DEL', tenant .. 'r')
    redis.call('HSET', tenant .. 'r', 'run', run)
  end
  redis.call('HSET', tenant .. 'r', shard, 1)
end

local function hex(id)
  return (id:gsub('.', function(c) return string.format('%02x', c:byte()) end))
end

local function count_sent(prefix, scenario, at_ms, change)
  local key = prefix .. scenario
  local minute = math.floor(at_ms / MINUTE_MS)
  redis.call('HINCRBY', key, minute, change)
  if redis.call('HLEN', key) > 2 * MINUTES then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if tonumber(field) <= minute - MINUTES then redis.call('HDEL', key, field) end
    end
  end
end

-- An offer: {user, subject, scenario, channel, service, deadline_ms, position, place, body, dispatches}
-- A dispatch: {dispatch id, state, at_ms, epoch, applied, gateway id, code, token}
local function get_offer(prefix, id)
  local packed = redis.call('GET', prefix .. 'f:' .. id)
  return packed and cmsgpack.unpack(packed)
end

local function put_offer(prefix, id, offer, keep_ms)
  redis.call('SET', prefix .. 'f:' .. id, cmsgpack.pack(offer), 'PX', keep_ms)
end

-- The second channel of an offer (G5): `b` holds {channel, after_ms} while it may still be tried, `bz` when it is due.
local ENDED = {deadline = true, no_consent = true, user_closed = true, store_lost = true}

local function drop_fallback(prefix, id)
  redis.call('HDEL', prefix .. 'b', id)
  redis.call('ZREM', prefix .. 'bz', id)
end

local function is_second(dispatch_id) return dispatch_id:sub(-2) == '/2' end

-- Take an outcome of the first channel into account; `reports`: receipts of it can be missed.
local function note_fallback(prefix, id, dispatch_id, state, at_ms, code, reports)
  local packed = redis.call('HGET', prefix .. 'b', id)
  if not packed then return end
  if is_second(dispatch_id) or state == 'delivered' or ENDED[code] or (state == 'accepted' and not reports) then
    drop_fallback(prefix, id)
  elseif state == 'accepted' or state == 'unknown' then
    redis.call('ZADD', prefix .. 'bz', at_ms + cmsgpack.unpack(packed)[2], id)
  elseif state == 'rejected' or state == 'failed' or state == 'expired' then
    redis.call('ZADD', prefix .. 'bz', at_ms, id)
  end
end

-- Append what became of a dispatch; say whether it changed its state (G1).
local function add_dispatch(prefix, id, offer, dispatch_id, state, at_ms, epoch, gateway_id, code, reports)
  local before = ''
  for _, one in ipairs(offer[10]) do
    -- What came too late once is not written a second time: a replay may bring it again.
    if one[1] == dispatch_id and one[2] == state and not one[5] then return false, false end
    if one[5] and one[1] == dispatch_id then before = one[2] end
  end
  if before == state then return false, false end
  local applied = FOLLOWS[before][state] or false
  table.insert(offer[10], {dispatch_id, state, at_ms, epoch, applied, gateway_id, code, false})
  if applied then
    if redis.call('HGET', prefix .. 's', id) == dispatch_id then redis.call('HDEL', prefix .. 's', id) end
    redis.call('ZREM', prefix .. 'outbox', id)
    note_fallback(prefix, id, dispatch_id, state, at_ms, code, reports)
  end
  return true, applied
end

-- End the next dispatch of a queued offer before anybody claims it; under its id, so that a claim is too late.
local function end_unclaimed(prefix, id, offer, state, at_ms, epoch, code)
  table.insert(offer[10], {id .. '/' .. offer[4] .. '/1', state, at_ms, epoch, true, false, code, false})
  redis.call('ZREM', prefix .. 'outbox', id)
  drop_fallback(prefix, id)
end

-- Where the user was closed after the offer was made, it ends (A4); say whether it did.
local function ended_by_close(prefix, id, offer, epoch, keep_ms)
  local closed = offer[1] and redis.call('HMGET', prefix .. 'c:' .. offer[1], '#place', '#at')
  if not closed or not closed[1] or tonumber(closed[1]) < offer[8] then return false end
  if not redis.call('ZSCORE', prefix .. 'outbox', id) then return false end
  end_unclaimed(prefix, id, offer, 'failed', tonumber(closed[2]), epoch, 'user_closed')
  put_offer(prefix, id, offer, keep_ms)
  return true
end

local function said_of(prefix, offer, purpose)
  local user = redis.call('HGET', prefix .. 'c:' .. offer[1], purpose)
  local subject = offer[2] ~= offer[1] and redis.call('HGET', prefix .. 'c:' .. offer[2], purpose)
  return user or subject, user == '0' or subject == '0'
end

-- Whoever withdrew it anywhere has withdrawn it: user and subject are both asked (A4).
-- Who refuses the first channel of an offer refuses the offer: its second channel is silent too (A3, G5).
local function has_consent(prefix, offer, channel, assumed)
  local purpose = 'marketing.' .. channel
  local is_said, is_refused = said_of(prefix, offer, purpose)
  if channel ~= offer[4] and not is_refused then
    local _, refused_first = said_of(prefix, offer, 'marketing.' .. offer[4])
    is_refused = refused_first
  end
  if is_refused then return false end
  if is_said then return true end
  for _, one in ipairs(assumed) do
    if one == purpose then return true end
  end
  return false
end

local function is_paused(prefix, everywhere, scenario)
  for _, key in ipairs({prefix .. 'p', everywhere}) do
    if redis.call('HEXISTS', key, '*') == 1 or redis.call('HEXISTS', key, scenario) == 1 then return true end
  end
  return false
end
