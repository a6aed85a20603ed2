-- Give back what offers took, or remember that their messages arrived (C2, G1).
--
-- KEYS: 1 meta
-- ARGV: 4 prefix of the shard, 5 prefix of persons, 6 prefix of deployment counters, 7 acts as one flat array:
-- subject's key or '' (then it is looked up by the offer), id, 'r' release or 'd' delivered, number of the next request
-- 8 prefix of the tenant
-- Answer: for each act the subject's key where it changed something, else ''
local refusal = guard(KEYS[1])
if refusal then return refusal end
return cmsgpack.pack(settle(ARGV[4], ARGV[5], ARGV[6], cmsgpack.unpack(ARGV[7]), ARGV[8]))
