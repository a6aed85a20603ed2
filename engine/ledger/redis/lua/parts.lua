-- Remember by which names gateways will report parts of messages; say of which a receipt has come already (G3).
--
-- KEYS: 1 names whose early receipts are not told yet
-- ARGV: 1 keep_ms, 2 list of {key of the part, key of its early receipts, part, name}
for _, one in ipairs(cmsgpack.unpack(ARGV[2])) do
  redis.call('SET', one[1], one[3], 'PX', ARGV[1])
  if redis.call('EXISTS', one[2]) == 1 then redis.call('SADD', KEYS[1], one[4]) end
end
return redis.call('SCARD', KEYS[1])
