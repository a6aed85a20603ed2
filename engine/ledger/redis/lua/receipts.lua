-- Find whose parts receipts are of; keep those of which nothing is known yet (G3).
--
-- ARGV: 1 keep_ms, 2 list of {key of the part, key of its early receipts, state, receipt}
-- Answer: for each the part, '' where it is unknown
local out = {}
for _, one in ipairs(cmsgpack.unpack(ARGV[2])) do
  local part = redis.call('GET', one[1])
  if not part then
    redis.call('HSET', one[2], one[3], one[4])
    redis.call('PEXPIRE', one[2], ARGV[1])
  end
  out[#out + 1] = part or ''
end
return out
