-- Claim offers before any byte leaves (D7): every check of docs/contracts.md in its order, then SUBMITTING.
--
-- KEYS: 1 meta
-- ARGV: 1 epoch of the claimant, 2 not used, 3 run id, 4 prefix of the shard, 5 wall now_ms, 6 keep_ms, 7 token of
-- this call, 8 key of pauses over all shards, 9 purposes that apply without a record, 10 flat: offer id, dispatch id
-- Answer: one text each; a call repeated after a lost reply says `claimed` again
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'claims')
local q, out = cmsgpack.unpack(ARGV[10]), {}
local prefix, now_ms, keep_ms, token = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local available = meta[1] and meta[2] == ARGV[3]
local assumed = cmsgpack.unpack(ARGV[9])

-- Nothing arrived or is under way, nothing was given back, and the number is still the user's (G5, A4).
local function may_claim_second(id, offer, channel, states)
  local packed = redis.call('HGET', prefix .. 'b', id)
  if not packed or cmsgpack.unpack(packed)[1] ~= channel then return false end
  if not redis.call('ZSCORE', prefix .. 'bz', id) then return false end
  for _, state in pairs(states) do
    if state == 'delivered' or state == 'submitting' then return false end
  end
  local closed = redis.call('HGET', prefix .. 'c:' .. offer[1], '#place')
  return not closed or tonumber(closed) < offer[8]
end

local function claim(id, dispatch_id)
  if not available then return 'unavailable' end
  local offer = get_offer(prefix, id)
  if not offer or not offer[1] then return 'unknown_offer' end
  if ended_by_close(prefix, id, offer, tonumber(meta[3]), keep_ms) then return 'already' end
  local channel = dispatch_id:match('/([^/]*)/') or offer[4]
  local is_fallback = is_second(dispatch_id) and channel ~= offer[4]
  local states = {}
  for _, one in ipairs(offer[10]) do
    if one[1] == dispatch_id then return one[8] == token and 'claimed' or 'already' end
    if one[5] then states[one[1]] = one[2] end
  end
  if is_fallback then
    if not may_claim_second(id, offer, channel, states) then
      drop_fallback(prefix, id)
      return 'already'
    end
  else
    channel = offer[4]
    for _, state in pairs(states) do
      if state ~= 'rejected' and state ~= 'failed' and state ~= 'expired' then return 'already' end
    end
  end
  if is_paused(prefix, ARGV[8], offer[3]) then return 'paused' end
  if not offer[5] and not has_consent(prefix, offer, channel, assumed) then return 'no_consent' end
  if now_ms >= offer[6] then return 'expired' end
  if offer[11] then
    local pool, number = offer[11]:match('^(.*)#(%d+)$')
    if pool and span_of(load_pool(prefix, pool)[2], tonumber(number)) then return 'code_expired' end
  end
  if meta[3] ~= ARGV[1] then return 'fenced' end
  table.insert(offer[10], {dispatch_id, 'submitting', now_ms, tonumber(meta[3]), true, false, false, token})
  put_offer(prefix, id, offer, keep_ms)
  redis.call('HSET', prefix .. 's', id, dispatch_id)
  redis.call('ZREM', prefix .. 'outbox', id)
  if is_second(dispatch_id) then drop_fallback(prefix, id) end
  return 'claimed'
end

for p = 1, #q, 2 do out[#out + 1] = claim(q[p], q[p + 1]) end
return cmsgpack.pack(out)
