-- List offers whose second channel is due (G5): it may be tried as long as the fallback stands in `b`.
--
-- KEYS: 1 meta   ARGV: 1 prefix of the shard, 2 now_ms, 3 limit
-- Answer: flat: body of the offer, channel
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ARGV[1] .. 'bz', '-inf', ARGV[2], 'LIMIT', 0, ARGV[3])) do
  local offer, packed = get_offer(ARGV[1], id), redis.call('HGET', ARGV[1] .. 'b', id)
  if offer and offer[1] and packed then
    out[#out + 1] = offer[9]
    out[#out + 1] = cmsgpack.unpack(packed)[1]
  else
    drop_fallback(ARGV[1], id)
  end
end
return cmsgpack.pack(out)
