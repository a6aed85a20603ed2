-- List offers that are committed and not claimed, oldest first; those whose user was closed since end here (A4).
--
-- KEYS: 1 meta   ARGV: 4 prefix of the shard, 5 limit, 6 keep_ms
local epoch = tonumber(redis.call('HGET', KEYS[1], 'claims') or 0)
local out = {}
for _, id in ipairs(redis.call('ZRANGE', ARGV[4] .. 'outbox', 0, tonumber(ARGV[5]) - 1)) do
  local offer = get_offer(ARGV[4], id)
  if not offer then
    redis.call('ZREM', ARGV[4] .. 'outbox', id)
  elseif not ended_by_close(ARGV[4], id, offer, epoch, tonumber(ARGV[6])) then
    out[#out + 1] = offer[9]
  end
end
return cmsgpack.pack(out)
