-- Put grants from the reservations log back where they are missing (F8, F10); repeating it changes nothing.
--
-- KEYS: 1 meta, 2... subjects
-- ARGV: 1 prefix of deployment counters, 2 keep_ms, 3 flat, per subject in order: subject, id, at_ms, number, shard,
-- released, scenario, category, partner, channel, flags; at_ms -1: only its release, or that it arrived, 4 token
if not is_healing(KEYS[1], ARGV[4]) then return 'behind' end
local q = cmsgpack.unpack(ARGV[3])
for p = 1, #q, 11 do
  local key, id = KEYS[q[p]], q[p + 1]
  local value = redis.call('GET', key) or ''
  local found = false
  for at = 1, #value, SIZE do
    if value:sub(at, at + 15) == id then
      found = true
      local g = {struct.unpack(GRANT, value, at)}
      if g[5] == 0 and q[p + 5] > 0 then
        g[5] = q[p + 5]
        put_grant(key, value, at, g)
        if not has(g[10], WITHHELD) then count_sent(ARGV[1], g[6], g[2], -1) end
      elseif has(q[p + 10], DELIVERED) and not has(g[10], DELIVERED) then
        g[10] = g[10] + DELIVERED
        put_grant(key, value, at, g)
      end
      break
    end
  end
  if not found and q[p + 2] >= 0 then
    value = value .. struct.pack(GRANT, unpack(q, p + 1, p + 10))
    if has(q[p + 10], KEEP) then
      redis.call('SET', key, value)
    else
      redis.call('SET', key, value, 'PX', ARGV[2])
    end
    if q[p + 5] == 0 and not has(q[p + 10], WITHHELD) then count_sent(ARGV[1], q[p + 6], q[p + 2], 1) end
  end
end
return 'done'
