-- Drop a subject's grants from before an instant, but for those that a rule without a window looks at.
-- KEYS: 1 subject   ARGV: 1 before_ms
local value = redis.call('GET', KEYS[1]) or ''
local parts = {}
for at = 1, #value, SIZE do
  local g = {struct.unpack(GRANT, value, at)}
  if g[2] >= tonumber(ARGV[1]) or has(g[10], KEEP) then parts[#parts + 1] = value:sub(at, at + SIZE - 1) end
end
local kept = table.concat(parts)
if kept == value then return 0 end
if kept == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], kept, 'KEEPTTL') end
return 1
