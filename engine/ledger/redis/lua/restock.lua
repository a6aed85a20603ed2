-- Begin to heal a shard (F8, F10): list what will be put back without being committed, and make the shard's part of what
-- was given what its log says, and the sums over the deployment with it (O3).
--
-- KEYS: 1 meta, 2 grants not yet committed
-- ARGV: 1 epoch, 3 run id, 4 prefix of the shard, 5 prefix of the tenant, 6 what PREFIXstock holds by the log, flat, or
-- nil: as it is, 7 shard where it is done for an absent owner, else '', 8 what will be put back: key, id, scenario or -1,
-- at_ms, ..., 9 token
local held = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if held > tonumber(ARGV[1]) then return 'fenced' end
if ARGV[7] ~= '' and redis.call('HGET', ARGV[5] .. 'r', 'run') == ARGV[3]
  and redis.call('HEXISTS', ARGV[5] .. 'r', ARGV[7]) == 1 then
  return 'whole'
end
redis.call('HSET', KEYS[1], 'healing', ARGV[9])
if ARGV[7] == '' then
  -- A crash before their commit takes these back (lua/take.lua), as it would without the loss.
  redis.call('DEL', KEYS[2])
  if #cmsgpack.unpack(ARGV[8]) > 0 then redis.call('RPUSH', KEYS[2], ARGV[8]) end
end
local mine, all = ARGV[4] .. 'stock', ARGV[5] .. 'stock'
local told, q = {}, cmsgpack.unpack(ARGV[6])
if not q then return 'done' end
for k = 1, #q, 2 do told[q[k]] = q[k + 1] end
local before = redis.call('HGETALL', mine)
for k = 1, #before, 2 do
  local kind = before[k]:sub(1, 2)
  if kind ~= 'k:' then redis.call('HINCRBY', all, before[k], whole(-tonumber(before[k + 1]))) end
end
redis.call('DEL', mine)
for field, value in pairs(told) do
  if field:sub(1, 2) == 'k:' then
    redis.call('HSET', mine, field, cmsgpack.pack(value))
  else
    redis.call('HSET', mine, field, whole(value))
    redis.call('HINCRBY', all, field, whole(value))
  end
end
return 'done'
