-- Store what became of dispatches; a final state never regresses (G1).
--
-- KEYS: 1 meta
-- ARGV: 3 run id, 4 prefix of the shard, 5 keep_ms, 6 list of {offer id, dispatch id, state, at_ms, gateway id, code,
-- whether receipts can be missed}
-- Answer: for each 1 where its state changed
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'claims')
if not meta[1] or meta[2] ~= ARGV[3] then return 'behind' end
local out, keep_ms = {}, tonumber(ARGV[5])
for _, one in ipairs(cmsgpack.unpack(ARGV[6])) do
  local offer = get_offer(ARGV[4], one[1]) or {false, false, false, false, false, 0, 0, 0, '', {}}
  local written, applied =
    add_dispatch(ARGV[4], one[1], offer, one[2], one[3], one[4], tonumber(meta[3] or 0), one[5], one[6], one[7])
  if written then put_offer(ARGV[4], one[1], offer, keep_ms) end
  out[#out + 1] = applied and 1 or 0
end
return cmsgpack.pack(out)
