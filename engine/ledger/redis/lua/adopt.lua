-- Say that what a shard gave counts again, on behalf of an owner that is not there.
-- ARGV: 1 prefix of the tenant, 2 run id, 3 shard, 4 token
if not is_healing(KEYS[1], ARGV[4]) then return 'behind' end
redis.call('HDEL', KEYS[1], 'healing')
join(ARGV[1], ARGV[2], ARGV[3])
return 'done'
