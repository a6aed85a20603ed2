-- Say that a shard is whole, unless it is not what this process knows.
-- KEYS: 1 meta   ARGV: 4 prefix of the tenant, 5 shard
local refusal = guard(KEYS[1])
if refusal then return refusal end
join(ARGV[4], ARGV[3], ARGV[5])
return 'done'
