-- Give back what offers took, or remember that their messages arrived (C2, G1).
--
-- KEYS: 1 meta
-- ARGV: 4 prefix of the shard, 5 prefix of persons, 6 prefix of deployment counters, 7 acts as one flat array:
-- subject's key or '' (then it is looked up by the offer), id, 'r' release or 'd' delivered, number of the next request
-- 8 prefix of the tenant
-- Answer: for each act the subject's key where it changed something, else ''
local refusal = guard(KEYS[1])
if refusal then return refusal end
local q, out = cmsgpack.unpack(ARGV[7]), {}
for p = 1, #q, 4 do
  local key, id, act, number = q[p], q[p + 1], q[p + 2], q[p + 3]
  local did = 0
  if key == '' then
    local offer = get_offer(ARGV[4], hex(id))
    if offer and offer[1] then
      key = offer[1] == offer[2] and ARGV[4] .. 'u:' .. offer[1] or ARGV[5] .. offer[2]
    end
  end
  local value = key ~= '' and redis.call('GET', key)
  if value then
    for at = 1, #value, SIZE do
      if value:sub(at, at + 15) == id then
        local g = {struct.unpack(GRANT, value, at)}
        if act == 'd' and not has(g[10], DELIVERED) then
          g[10], did = g[10] + DELIVERED, 1
        elseif act == 'r' and g[5] == 0 and not has(g[10], DELIVERED) then
          g[5], did = number + 1, 1
          give_back(ARGV[4], ARGV[8], hex(id))
          if not has(g[10], WITHHELD) then count_sent(ARGV[6], g[6], g[2], -1) end
        end
        if act == 'r' then drop_fallback(ARGV[4], hex(id)) end
        if did == 1 then
          local record = struct.pack(GRANT, g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10])
          redis.call('SET', key, value:sub(1, at - 1) .. record .. value:sub(at + SIZE), 'KEEPTTL')
        end
        break
      end
    end
  end
  out[#out + 1] = did == 1 and key or ''
end
return cmsgpack.pack(out)
