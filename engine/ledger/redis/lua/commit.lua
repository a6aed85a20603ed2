-- Store a batch's effects with its position, once (T3): offers to hand over, consents, closed users, pauses, outcomes.
--
-- KEYS: 1 meta, 2 grants not yet committed, 3 positions with the number of requests asked
-- ARGV: 4 prefix of the shard, 5 position, 6 now_ms, 7 requests asked, 8 longest window, 9 number of this commit,
-- 10 keep_ms of offers, 11 acts in log order
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'logged', 'run', 'position', 'place', 'claims')
if meta[1] == ARGV[1] and meta[3] == ARGV[3] and meta[2] == ARGV[9] and meta[4] == ARGV[5] then return 'done' end
local refusal = guard(KEYS[1])
if refusal then return refusal end
if tonumber(ARGV[5]) <= tonumber(meta[4]) then return 'old' end
local prefix, keep_ms, epoch = ARGV[4], tonumber(ARGV[10]), tonumber(meta[6])
local place = tonumber(meta[5])
for _, act in ipairs(cmsgpack.unpack(ARGV[11])) do
  local kind = act[1]
  place = place + 1
  if kind == 'offer' then
    local id = act[2]
    local known = get_offer(prefix, id)
    if not known or not known[1] then
      local offer = {act[3], act[4], act[5], act[6], act[7], act[8], tonumber(ARGV[5]), place, act[9],
        known and known[10] or {}, act[12]}
      put_offer(prefix, id, offer, keep_ms)
      redis.call('ZADD', prefix .. 'outbox', 0, id)
      if act[10] then redis.call('HSET', prefix .. 'b', id, cmsgpack.pack({act[10], act[11]})) end
    end
  elseif kind == 'consent' then
    if act[4] == -1 then
      redis.call('HDEL', prefix .. 'c:' .. act[2], act[3])
    else
      redis.call('HSET', prefix .. 'c:' .. act[2], act[3], act[4])
    end
    -- What users said in their own words stays, whatever they say later.
    if act[7] then
      redis.call('RPUSH', prefix .. 'e:' .. act[2], cmsgpack.pack({act[3], act[4], act[5], act[6], act[7]}))
    end
  elseif kind == 'close' then
    local key = prefix .. 'c:' .. act[2]
    redis.call('DEL', key)
    redis.call('HSET', key, '#place', place, '#at', ARGV[6])
    redis.call('PEXPIRE', key, keep_ms)
  elseif kind == 'pause' then
    if act[3] then redis.call('HSETNX', prefix .. 'p', act[2], ARGV[5]) else redis.call('HDEL', prefix .. 'p', act[2]) end
  elseif kind == 'dispatch' then
    -- A receipt counts where its dispatch is known here; a forgotten user leaves no trace.
    local offer, known = get_offer(prefix, act[2]), false
    for _, one in ipairs(offer and offer[10] or {}) do known = known or one[1] == act[3] end
    local written = known and add_dispatch(prefix, act[2], offer, act[3], act[4], act[5], epoch, act[6], act[7])
    if written then put_offer(prefix, act[2], offer, keep_ms) end
  elseif kind == 'decision' then
    redis.call('HSET', prefix .. 'x:' .. act[3], act[2], act[4])
    redis.call('PEXPIRE', prefix .. 'x:' .. act[3], keep_ms)
  end
end
redis.call('DEL', KEYS[2])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[5] .. ':' .. ARGV[7])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -10001)
redis.call('HSET', KEYS[1], 'position', ARGV[5], 'now', ARGV[6], 'asked', ARGV[7], 'longest', ARGV[8],
  'logged', ARGV[9], 'place', place)
return 'done'
