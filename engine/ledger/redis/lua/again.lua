-- Say why what is claimed must not be submitted once more: the claim's checks as they stand now; '' where it may (D7).
--
-- KEYS: 1 meta   ARGV: 1 epoch of the claimant, 3 run id, 4 prefix of the shard, 5 key of pauses over all shards,
-- 6 purposes that apply without a record, 7 offer id, 8 channel of the dispatch
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'claims')
if not meta[1] or meta[2] ~= ARGV[3] then return 'unavailable' end
local offer = get_offer(ARGV[4], ARGV[7])
if not offer or not offer[1] then return 'unknown_offer' end
if is_paused(ARGV[4], ARGV[5], offer[3]) then return 'paused' end
if not offer[5] and not has_consent(ARGV[4], offer, ARGV[8], cmsgpack.unpack(ARGV[6])) then return 'no_consent' end
return meta[3] == ARGV[1] and '' or 'fenced'
