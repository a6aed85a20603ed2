-- Put back what committed grants took of stock, where it is missing, and drop what went back (F8, F10), after
-- lua/restock.lua, which put the sums right.
--
-- KEYS: 1 meta
-- ARGV: 1 prefix of the shard, 2 prefix of the tenant, 3 keep_ms, 4 rows as lua/stock.lua's take_again has them, 5 offers
-- given back, 6 token
if not is_healing(KEYS[1], ARGV[6]) then return 'behind' end
take_again(ARGV[1], ARGV[2], cmsgpack.unpack(ARGV[4]), tonumber(ARGV[3]), true)
for _, id in ipairs(cmsgpack.unpack(ARGV[5])) do give_back(ARGV[1], ARGV[2], id, true) end
return 'done'
