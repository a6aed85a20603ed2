-- Tell the claim store the consents that the engine knows, while a shard is healed (F10).
--
-- KEYS: 1 meta, 2... consents to forget
-- ARGV: 1 prefix of the shard, 2 flat: user, purpose, 1 or 0, ..., 3 token
if not is_healing(KEYS[1], ARGV[3]) then return 'behind' end
for k = 2, #KEYS do redis.call('DEL', KEYS[k]) end
local q = cmsgpack.unpack(ARGV[2])
for k = 1, #q, 3 do redis.call('HSET', ARGV[1] .. 'c:' .. q[k], q[k + 1], q[k + 2]) end
return 'done'
