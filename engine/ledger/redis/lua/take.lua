-- Take a shard over: a new epoch, so that whoever had it is fenced (D7, F4).
--
-- As its engine: grants that were never committed are taken back, replay decides them again. As its dispatcher: claims
-- found SUBMITTING were cut off and become UNKNOWN.
-- KEYS: 1 meta, 2 grants not yet committed
-- ARGV: 1 epoch, for 'again', 3 run id, 4 prefix of the shard, 5 prefix of deployment counters, 6 '1' as engine, 'again' for
-- what its engine has not committed, 7 '1' as dispatcher, 8 keep_ms,
-- 9 prefix of the tenant
-- Answer: epoch, claims' epoch, position, now_ms, asked, longest, logged, run id, claims settled; run id '' where the
-- shard was not known
local prefix = ARGV[4]
if ARGV[6] == 'again' and tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0) > tonumber(ARGV[1]) then return 'fenced' end
local known = redis.call('HGET', KEYS[1], 'run') or ''
if known == '' and ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], 'position', -1, 'now', -1, 'asked', 0, 'longest', 0, 'logged', 0, 'place', 0)
end
local settled = 0
if ARGV[7] == '1' then
  local epoch = redis.call('HINCRBY', KEYS[1], 'claims', 1)
  local cut = redis.call('HGETALL', prefix .. 's')
  for k = 1, #cut, 2 do
    local offer = get_offer(prefix, cut[k])
    if offer then
      local last = offer[10][#offer[10]]
      table.insert(offer[10], {cut[k + 1], 'unknown', last[3], epoch, true, false, 'restart', false})
      put_offer(prefix, cut[k], offer, tonumber(ARGV[8]))
      settled = settled + 1
    end
  end
  redis.call('DEL', prefix .. 's')
end
if ARGV[6] == '1' then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('HDEL', KEYS[1], 'healing')
end
if ARGV[6] == '1' or ARGV[6] == 'again' then
  for _, packed in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    local opened = cmsgpack.unpack(packed)
    for k = 1, #opened, 4 do
      local key, id, scenario, at_ms = opened[k], opened[k + 1], opened[k + 2], opened[k + 3]
      local value = redis.call('GET', key) or ''
      for at = 1, #value, SIZE do
        if value:sub(at, at + 15) == id then
          local released = select(5, struct.unpack(GRANT, value, at))
          value = value:sub(1, at - 1) .. value:sub(at + SIZE)
          if value == '' then redis.call('DEL', key) else redis.call('SET', key, value, 'KEEPTTL') end
          if scenario >= 0 and released == 0 then count_sent(ARGV[5], scenario, at_ms, -1) end
          give_back(prefix, ARGV[9], hex(id))
          redis.call('DEL', prefix .. 'v:' .. hex(id))
          break
        end
      end
    end
  end
  redis.call('DEL', KEYS[2])
end
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'claims', 'position', 'now', 'asked', 'longest', 'logged')
for k = 1, 7 do meta[k] = tonumber(meta[k] or 0) end
meta[8], meta[9] = known, settled
return cmsgpack.pack(meta)
