-- Put back what offers took of stock, where it is missing, and drop what went back (F8, F10), after lua/restock.lua.
--
-- KEYS: 1 meta
-- ARGV: 1 prefix of the shard, 2 prefix of the tenant, 3 keep_ms, 4 list of {offer id, subject, pool or false, number,
-- day, {benefit, cost, counts users, ...}, whether the sums have it already}, 5 offers given back that the sums do not
-- have any more, 6 token
if not is_healing(KEYS[1], ARGV[6]) then return 'behind' end
for _, one in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, subject, pool, number, day, lines = unpack(one, 1, 6)
  local is_missing = redis.call('EXISTS', ARGV[1] .. 't:' .. id) == 0
  if not one[7] and is_missing then
    for k = 1, #lines, 3 do count_given(ARGV[1], ARGV[2], lines[k], day, 1, lines[k + 1]) end
    if pool then
      local state = load_pool(ARGV[1], pool)
      state[3] = cut(state[3], number, number + 1)
      save_pool(ARGV[1], pool, state)
    end
  end
  if is_missing then
    write_take(ARGV[1], ARGV[2], id, subject, pool, number, day, lines, tonumber(ARGV[3]), false)
  end
end
for _, id in ipairs(cmsgpack.unpack(ARGV[5])) do give_back(ARGV[1], ARGV[2], id, true) end
return 'done'
