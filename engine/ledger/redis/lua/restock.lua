-- Make a shard's part of what was given what its log says, and the sums over the deployment with it (O3, F8, F10).
--
-- KEYS: 1 meta
-- ARGV: 1 epoch, 3 run id, 4 prefix of the shard, 5 prefix of the tenant, 6 what PREFIXstock holds by the log, flat, 7 shard
-- where it is done for an absent owner, else ''
local held = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if held > tonumber(ARGV[1]) then return 'fenced' end
if ARGV[7] ~= '' and redis.call('HGET', ARGV[5] .. 'r', 'run') == ARGV[3]
  and redis.call('HEXISTS', ARGV[5] .. 'r', ARGV[7]) == 1 then
  return 'whole'
end
local mine, all = ARGV[4] .. 'stock', ARGV[5] .. 'stock'
local told, q = {}, cmsgpack.unpack(ARGV[6])
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
