-- Apply one record of the log about a pool of codes, once: leases, recalls, what is spent or went back (O3).
--
-- KEYS: 1 meta
-- ARGV: 1 'again' while a shard is healed, 4 prefix of the shard, 5 pool, 6 number of the act, 7 what: lease, recall,
-- spend, return; 8 its numbers, packed: {first, count, epoch} | {epoch} | {first, end, ...}; 9 token while it is healed
local refusal = ARGV[1] ~= 'again' and guard(KEYS[1])
if ARGV[1] == 'again' and not is_healing(KEYS[1], ARGV[9]) then refusal = 'behind' end
if refusal then return refusal end
local state, act, q = load_pool(ARGV[4], ARGV[5]), tonumber(ARGV[6]), cmsgpack.unpack(ARGV[8])
if act <= state[5] then return 'done' end
state[5] = act
if ARGV[7] == 'lease' then
  local first, last, epoch = q[1], q[1] + q[2], q[3]
  local known = q[2] <= 0
  for _, one in ipairs(state[1]) do known = known or (one[1] == first and one[2] == last and one[3] == epoch) end
  if not known then
    table.insert(state[1], {first, last, epoch})
    state[2] = cut(state[2], first, last)
    state[3] = add(state[3], first, last)
  end
elseif ARGV[7] == 'recall' then
  local kept = {}
  for _, one in ipairs(state[1]) do
    if one[3] > q[1] then
      kept[#kept + 1] = one
    else
      state[2] = add(state[2], one[1], one[2])
      for _, span in ipairs(state[3]) do
        local first, last = math.max(span[1], one[1]), math.min(span[2], one[2])
        if first < last then state[4] = add(state[4], first, last) end
      end
      state[3] = cut(state[3], one[1], one[2])
    end
  end
  state[1] = kept
else
  local from = ARGV[7] == 'spend' and 3 or 4
  for k = 1, #q, 2 do state[from] = cut(state[from], q[k], q[k + 1]) end
end
save_pool(ARGV[4], ARGV[5], state)
return 'done'
